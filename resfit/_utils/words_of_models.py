"""The part of the table of words for methods and attributes that users define, set or read on a model."""

from collections.abc import Mapping
from typing import Final

_STEP = "override `compute_loss(self, module, x, y, *, key, train)`, which training and evaluation call"
_PREDICT = "`predict(outputs=...)`, or override `__call__` of the `nnx.Module`"
_DATA = "pass the data to `fit`, `evaluate` or `predict`"
_HOOK = "write a `resfit.callbacks.Callback` and pass it to `fit(callbacks=[...])`"
_METRICS = "`compile(metrics=[...])`"
_RATE = "`compile(learning_rate=...)`: a number, a schedule, or a function of the step"
_PART = "the parts of `model.module`, an `nnx.Module`: `model.module.stem`, or all of them by `nnx.iter_modules`"
_CONFIG = "`model.save(path)`, which writes the specification of the network; a ResNet's is `model.module.spec`"
_VARIABLES = "`nnx.state(model.module, nnx.Param)`, or `model.get_weights()` as NumPy arrays"
_EXECUTIONS = "`compile(steps_per_execution=...)`"
_ATTRIBUTE = "an attribute of the `nnx.Module`: an `nnx.Param`, or an `nnx.Variable` for an array that is not trained"
_PRECISION = "`compile(precision='bfloat16')` or `compile(precision='float32')`; parameters stay float32"
_PROCESSES = "`jax.process_index()`, `jax.process_count()` and `jax.devices()`"
_LOGGER = "`callbacks=[resfit.callbacks.TensorBoard(...)]` or another logger"

# Place -> answer -> words, as in `words.WORDS`.
OF_MODELS: Final[Mapping[str, Mapping[str, str]]] = {
    "methods": {
        _STEP: (
            "train_step test_step training_step validation_step make_train_function make_test_function backward "
            "manual_backward training_step_end validation_step_end test_step_end"
        ),
        _PREDICT: "predict_step make_predict_function",
        _METRICS: "compute_metrics reset_metrics",
        "define `__call__` on the `nnx.Module` that the model wraps": "call forward",
        "`compile(optimizer, learning_rate=...)`": "configure_optimizers",
        "`compile(optimizer=...)` with an optax transformation": (
            "optimizer_step optimizer_zero_grad on_before_zero_grad on_before_backward on_after_backward "
            "on_before_optimizer_step"
        ),
        "`compile(optimizer=resfit.optimizers.clip(...))`": "configure_gradient_clipping",
        _RATE: "lr_scheduler_step",
        "`fit(callbacks=[...])`": "configure_callbacks",
        _HOOK: " ".join((
            "training_epoch_end validation_epoch_end test_epoch_end",
            *(
                f"on_{what}_{when}"
                for what in (
                    "fit", "train", "validation", "test", "predict", "epoch", "train_epoch", "validation_epoch",
                    "test_epoch", "predict_epoch", "train_batch", "validation_batch", "test_batch", "predict_batch",
                )
                for when in ("begin", "start", "end")
            ),
        )),
        _DATA: "train_dataloader val_dataloader test_dataloader predict_dataloader prepare_data",
        "`compile(preprocess=...)`, or `compile(augment=...)` in training only": (
            "transfer_batch_to_device on_before_batch_transfer on_after_batch_transfer"
        ),
        "write a `resfit.callbacks.Callback` with `state_dict` and `load_state_dict`": (
            "on_save_checkpoint on_load_checkpoint"
        ),
    },
    "settings": {
        "`model.freeze('stem', 'stage1')` with the parts that must not change, then compile; to train nothing, do not "
        "call fit": "trainable requires_grad",
        "`compile(dispatch='eager')`": "run_eagerly",
        "`compile(dispatch='eager')` to run steps without compiling; all other dispatches compile": "jit_compile",
        _EXECUTIONS: "steps_per_execution",
        "`compile(optimizer=...)`; for the learning rate set `model.learning_rate`": "optimizer",
        "`compile(loss=...)`": "loss",
        "`compile(loss_weights=...)`": "loss_weights",
        _METRICS: "metrics",
        _STEP: "automatic_optimization",
        "no setting: every step sets the mode of the module": "training",
    },
    "assignments": {
        "`compile(optimizer=...)`": "opt opt_func optimizers",
        "`compile(loss=...)`": "loss_func loss_fn criterion",
        "`model.learning_rate`": "lr",
        "`model.module.replace_head(num_classes)`, then `resfit.Model(module)` and compile": "fc classifier head",
        "`fit(callbacks=[...])`": "cbs callbacks",
        "`compile(...)`, which has an argument of this name": (
            "augment preprocess ema seed dispatch batch_norm gradient_accumulation_steps cpu_kernels compiler_options"
        ),
        "`fit(...)`, which has an argument of this name": (
            "batch_size epochs class_weight sample_weight validation_data validation_split steps_per_epoch "
            "initial_epoch"
        ),
    },
    "members": {
        _PART: (
            "layers get_layer submodules modules named_modules children named_children get_submodule get_classifier "
            "forward_head"
        ),
        _VARIABLES: (
            "weights variables trainable_variables trainable_weights non_trainable_variables non_trainable_weights "
            "parameters named_parameters get_parameter buffers named_buffers get_buffer"
        ),
        "`model.get_weights()`, `model.set_weights(arrays)`; for the names of PyTorch `resfit.weights.state_dict`": (
            "state_dict load_state_dict get_state_tree set_state_tree load_own_variables save_own_variables "
            "get_extra_state set_extra_state"
        ),
        _CONFIG: (
            "get_config from_config to_json to_yaml build_from_config compile_from_config get_build_config "
            "get_compile_config config hparams"
        ),
        _ATTRIBUTE: (
            "register_buffer register_parameter register_module add_module set_submodule add_weight add_variable"
        ),
        _PRECISION: (
            "half bfloat16 float double type to_fp16 to_bf16 to_fp32 dtype dtype_policy compute_dtype variable_dtype "
            "precision"
        ),
        _PROCESSES: "is_global_zero global_rank local_rank world_size num_devices num_nodes",
        _LOGGER: "logger loggers",
        "`copy.deepcopy(model)`": "clone_model",
        "`model.save(path)` with a path that ends in .safetensors, and `resfit.load(path)`": (
            "save_model save_checkpoint save_pretrained"
        ),
        "`resfit.load(path)`, with the path of `model.save`": (
            "load_from_checkpoint load_model load_checkpoint from_checkpoint restore from_file from_json from_yaml"
        ),
        "`fit` with a dataset; for one step `model.train_on_batch(x, y)`": "fit_generator partial_fit",
        "`compile(learning_rate='one_cycle')`, then `fit`": "fit_one_cycle",
        "`compile(learning_rate=...)` with a schedule of `resfit.schedules` or optax, then `fit`": (
            "fit_flat_cos fit_sgdr"
        ),
        "`evaluate` with a dataset": "evaluate_generator validate test score",
        "`predict` with a dataset": "predict_generator predict_proba get_preds",
        "`predict(outputs='labels')`": "predict_classes",
        "`predict(outputs='embedding')`": "forward_features",
        "`model.module.features(x, stages=...)` of a network of resfit; return the values from a custom module": (
            "forward_intermediates get_intermediate_layers register_forward_hook register_forward_pre_hook "
            "register_full_backward_hook register_full_backward_pre_hook register_backward_hook"
        ),
        "`model.module.spec` of a network of resfit": "feature_info num_features num_classes",
        "`model.transforms`": "default_cfg pretrained_cfg",
        "`resfit.create_model(..., remat='block')`": "set_grad_checkpointing",
        "`resfit.create_model(name, weights=...)`": "from_pretrained",
        "`model.class_names`": "vocab classes_",
        "`predict(tta='flip')` or `evaluate(tta='flip')`": "tta",
        "`model.module.replace_head(num_classes)`, then compile": "reset_classifier replace_head",
        "`resfit.find_learning_rate(model, x, y)`": "lr_find",
        "`model.module`; `compile(preprocess=...)` applies to its inputs": (
            "inputs outputs input output input_shape output_shape"
        ),
        "no setting: `fit`, `evaluate` and `predict` set the mode of the module": "train eval",
        "`model.freeze()`, which without a pattern trains all parts, then compile": "unfreeze",
        "`model.freeze('stem', 'stage1')` with the parts that must not change, then compile": (
            "requires_grad_ freeze_to"
        ),
        "no call: every step computes its gradients anew": "zero_grad",
        "no call: set the arguments as attributes of the model": "save_hyperparameters",
        "`compile(optimizer=resfit.optimizers.clip(...))`": "clip_gradients",
        "`model.learning_rate`, or a schedule in `compile(learning_rate=...)`": "lr_schedulers lr_scheduler scheduler",
        "no setting: a model is built when it is made": "build built",
        "no setting: arrays are placed by `compile(dispatch=...)`, or stay on the device of the module": (
            "to cuda cpu device xpu mtia to_empty share_memory to_distributed distrib_ctx distribute_strategy strategy "
            "accelerator"
        ),
        "`Model.compute_loss`, with the penalty added to the loss of each example; weight decay: "
        "`resfit.optimizers.adamw(1e-3, weight_decay=0.05)`": "add_loss losses",
        "`compile(metrics=...)`; callbacks write logs": "add_metric log log_dict get_metrics_result",
        "`model.export('net.npz')`": "to_torchscript export_savedmodel",
        "`model.export('net.onnx')`": "to_onnx export_onnx onnx",
        "`model.summary()`": "plot_model extra_repr compute_output_shape compute_output_spec",
        "`model.history`, the History of the last `fit`; `model.history.plot()` draws it": (
            "recorder callback_metrics logged_metrics progress_bar_metrics plot_history plot_loss"
        ),
        "`resfit.plots.mistakes(...)`": "show_results plot_top_losses most_confused",
        "`resfit.plots.confusion_matrix(...)`": "plot_confusion_matrix",
        "`fit(callbacks=[...])`": "add_cb add_cbs remove_cb",
        "`fit(verbose=0)`": "no_bar no_mbar no_logging",
        "the argument `epoch` or `batch` of a callback's hooks, and `callback.params`": (
            "current_epoch global_step max_epochs max_steps num_training_batches estimated_stepping_batches"
        ),
        "`model.stop_training`": "should_stop",
        "`model.fit`, `model.evaluate` and `model.predict`": "trainer",
        _DATA: "dls datamodule train_dl val_dl one_batch all_batches show_batch",
        "`compile(optimizer=...)`": "create_opt",
        "`resfit.optimizers.by_part(...)`": "group_matcher no_weight_decay",
        "`nnx.split(model.module)` and `nnx.merge`, in custom code": (
            "stateless_call stateless_compute_loss compute_loss_and_updates"
        ),
        "`model.quantize(calibration_data)`": "quantized_call quantize_static to_int8 int8",
        "`jax.tree.map` over `nnx.state(model.module)`, then `nnx.update(model.module, state)`": "apply",
    },
    "model arguments": {
        "`resfit.Model(module)` with any `flax.nnx.Module`, which maps inputs to outputs": (
            "inputs outputs layers model net network"
        ),
        "`compile(optimizer, loss, metrics)`, and data for `fit`": (
            "dls loss_func opt_func loss optimizer metrics lr"
        ),
        "nothing: a model has no name": "name",
        "`model.freeze(...)`, then compile": "trainable",
        "`compile(precision='bfloat16')`": "dtype",
        "`fit(callbacks=[...])`": "cbs callbacks",
    },
}  # fmt: skip
