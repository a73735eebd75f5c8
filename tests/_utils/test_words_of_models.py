"""Names that users of Keras, PyTorch, Lightning, fastai and timm type from habit work, or raise with the substitute."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

import resfit
from resfit import callbacks
from resfit._utils.words import answer
from resfit.errors import ArgumentError, CallbackError, CompileError, DataError, ModuleError, OverrideError
from tests.helpers import PlainNet, compiled, images, labels

# What scripts for Keras type most: the name, and whether it works here; else a part of the message of the error.
# The order and the choice are those of a count over 363 public files.
KERAS: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "loss=MeanSquaredError()": (lambda m: resfit.losses.MeanSquaredError(), "Use loss='mean_squared_error'"),
    "load_model": (lambda m: resfit.load_model, None),
    "model(x)": (lambda m: m(images()), None),
    "model.trainable = False": (lambda m: setattr(m, "trainable", False), r"model\.freeze\('stem', 'stage1'\)"),
    "metrics=[AUC()]": (lambda m: resfit.metrics.AUC(), r"Use metrics=\['auc'\]"),
    "model.layers": (lambda m: m.layers, r"model\.module\.stem"),
    "loss='mae'": (lambda m: m.compile("sgd", "mae", None), None),
    "model.trainable_variables": (lambda m: m.trainable_variables, r"nnx\.state\(model\.module, nnx\.Param\)"),
    "model.load_weights": (lambda m: m.load_weights, None),
    "sparse_categorical_accuracy": (lambda m: m.compile("sgd", metrics=["sparse_categorical_accuracy"]), None),
    "loss=[...]": (lambda m: m.compile("sgd", loss=["mse", "mae"], metrics=None), None),
    "model.save_weights": (lambda m: m.save_weights, None),
    "model.metrics_names": (lambda m: m.metrics_names, None),
    "def train_step": (lambda m: type("Mine", (resfit.Model,), {"train_step": lambda self: None}), "override comp"),
    "save_weights_only=True": (lambda m: callbacks.ModelCheckpoint("a.safetensors", save_weights_only=True), None),
    "model.get_config": (lambda m: m.get_config(), r"model\.save\(path\)"),
    "model.optimizer": (lambda m: m.optimizer, r"compile\(optimizer=\.\.\.\)"),
    "loss_weights": (lambda m: m.compile("sgd", ["mse", "mae"], None, loss_weights=[1.0, 0.5]), None),
    "run_eagerly=True": (lambda m: m.compile("sgd", run_eagerly=True), None),
    "steps_per_execution=2": (lambda m: m.compile("sgd", steps_per_execution=2), None),
    "model.optimizer.lr": (lambda m: m.optimizer.lr, r"set model\.learning_rate"),
    "fit(workers=2)": (lambda m: m.fit(images(), labels(), workers=2), "It needs nothing: sources of"),
    "compile('sgd', 'mse')": (lambda m: m.compile("sgd", "mse"), None),
    "model.get_layer": (lambda m: m.get_layer("d"), r"model\.module\.stem"),
    "model.metrics": (lambda m: m.metrics, r"compile\(metrics=\[\.\.\.\]\)"),
    "weighted_metrics=[...]": (lambda m: m.compile("sgd", weighted_metrics=["mse"]), "count examples without weights"),
    "summary(print_fn=print)": (lambda m: m.summary(print_fn=print), "It needs nothing: the table shows all parts"),
    "compile('Adam')": (lambda m: m.compile("Adam"), None),
    "BackupAndRestore": (lambda m: callbacks.BackupAndRestore("backup"), r"Checkpoint\(folder\) with fit"),
    "clone_model": (lambda m: resfit.clone_model(m), r"copy\.deepcopy\(model\)"),
    "model.to_json": (lambda m: m.to_json(), r"model\.save\(path\)"),
    "model.count_params": (lambda m: m.count_params(), None),
    "jit_compile=True": (lambda m: m.compile("sgd", jit_compile=True), None),
    "EarlyStopping().wait": (lambda m: callbacks.EarlyStopping().wait, None),
    "EarlyStopping().best_weights": (lambda m: callbacks.EarlyStopping().best_weights, None),
    "EarlyStopping().patience": (lambda m: callbacks.EarlyStopping().patience, None),
    "EarlyStopping().monitor": (lambda m: callbacks.EarlyStopping().monitor, None),
    "ModelCheckpoint(...).best": (lambda m: callbacks.ModelCheckpoint("a.safetensors").best, None),
    "loss='huber'": (lambda m: m.compile("sgd", "huber", None), None),
    "loss='kl_divergence'": (lambda m: m.compile("sgd", "kl_divergence", None), None),
}  # fmt: skip

# The public methods and properties of a torch.nn.Module, a Lightning Trainer, a LightningModule, a Learner of fastai
# and a model of timm that users call on a trained model.
MEMBERS = {
    "torch": """add_module apply bfloat16 buffers children cpu cuda double eval float forward get_buffer get_parameter
        get_submodule half load_state_dict modules mtia named_buffers named_children named_modules named_parameters
        parameters register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
        register_full_backward_hook register_module register_parameter requires_grad_ set_submodule share_memory
        state_dict to to_empty train training type xpu zero_grad""",
    "lightning": """automatic_optimization backward callback_metrics callbacks clip_gradients configure_optimizers
        current_epoch datamodule device estimated_stepping_batches global_rank global_step hparams is_global_zero
        load_from_checkpoint local_rank log log_dict logged_metrics logger loggers lr_schedulers manual_backward
        max_epochs max_steps num_devices num_training_batches optimizers precision progress_bar_metrics save_checkpoint
        save_hyperparameters should_stop strategy test to_onnx to_torchscript train_dataloader trainer training_step
        validate validation_step world_size""",
    "fastai": """add_cb add_cbs all_batches cbs create_opt dls export_onnx fit_flat_cos fit_one_cycle fit_sgdr
        freeze_to get_preds loss_func lr lr_find metrics no_bar no_logging one_batch opt opt_func plot_confusion_matrix
        plot_top_losses recorder remove_cb show_results to_bf16 to_distributed to_fp16 to_fp32 tta unfreeze validate
        vocab""",
    "timm": """default_cfg feature_info forward_features forward_head forward_intermediates get_classifier group_matcher
        no_weight_decay num_classes num_features pretrained_cfg reset_classifier set_grad_checkpointing""",
}


@pytest.fixture(scope="module")
def model() -> resfit.Model:
    return compiled(PlainNet(rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", KERAS)
def test_a_name_that_keras_users_type_works_or_names_the_substitute(model: resfit.Model, name: str) -> None:
    call, message = KERAS[name]
    if message is None:
        call(model)
        return
    with pytest.raises((ArgumentError, AttributeError, OverrideError), match=message):
        call(model)


def test_forty_names_are_checked() -> None:
    assert len(KERAS) == 40


@pytest.mark.parametrize("library", MEMBERS)
def test_methods_of_other_libraries_name_the_substitute(model: resfit.Model, library: str) -> None:
    for name in MEMBERS[library].split():
        with pytest.raises(OverrideError, match=rf"no attribute '{name}'\. Expected "):
            getattr(model, name)


@pytest.mark.parametrize(
    "name", ["fc", "classifier", "head", "lr", "requires_grad", "opt", "loss_func", "criterion", "cbs", "callbacks"]
)
def test_setting_an_attribute_that_nothing_reads_raises(model: resfit.Model, name: str) -> None:
    with pytest.raises(OverrideError, match=f"model.{name} was set to 1, and nothing in resfit reads it. Expected "):
        setattr(model, name, 1)


def test_a_subclass_can_use_names_that_only_other_libraries_read() -> None:
    class Mine(resfit.Model):
        def __init__(self, module: nnx.Module) -> None:
            super().__init__(module)
            self.criterion, self.lr = print, 0.1

        @staticmethod
        def loss_fn(outputs: Any) -> Any:
            return outputs

    mine = Mine(PlainNet(rngs=nnx.Rngs(0)))
    assert (mine.criterion, mine.lr, mine.loss_fn(2)) == (print, 0.1, 2)
    with pytest.raises(OverrideError, match="requires_grad was set to False"):
        mine.requires_grad = False


def test_setting_the_module_raises_and_names_the_constructor(model: resfit.Model) -> None:
    with pytest.raises(ModuleError, match=r"set to a PlainNet.*resfit\.Model\(module\)"):
        model.module = PlainNet(rngs=nnx.Rngs(1))
    assert type(model.module) is PlainNet


@pytest.mark.parametrize(
    "hook",
    ["on_after_backward", "on_before_optimizer_step", "optimizer_zero_grad", "on_save_checkpoint", "prepare_data"],
)
def test_defining_a_hook_of_lightning_raises(hook: str) -> None:
    with pytest.raises(OverrideError, match=f"Mine defines {hook}, and nothing in resfit calls or reads it"):
        type("Mine", (resfit.Model,), {hook: lambda self, *arguments: None})


# --- positional arguments ---------------------------------------------------------------------------------------------

# Keras 3.15's parameters, in order, of the callbacks that resfit has too.
IN_ORDER = {
    "CSVLogger": "filename separator append",
    "EarlyStopping": "monitor min_delta patience verbose mode baseline restore_best_weights start_from_epoch",
    "LambdaCallback": "on_epoch_begin on_epoch_end on_train_begin on_train_end on_train_batch_begin on_train_batch_end",
    "LearningRateScheduler": "schedule verbose",
    "ModelCheckpoint": (
        "filepath monitor verbose save_best_only save_weights_only mode save_freq initial_value_threshold"
    ),
    "ReduceLROnPlateau": "monitor factor patience verbose mode min_delta cooldown min_lr",
    "SwapEMAWeights": "swap_on_epoch",
    "TensorBoard": "log_dir histogram_freq write_graph write_images write_steps_per_second update_freq profile_batch",
    "TerminateOnNaN": "raise_error",
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_positional_arguments_of_callbacks_have_the_order_of_keras(name: str) -> None:
    parameters = inspect.signature(getattr(callbacks, name)).parameters.values()
    positional = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    in_keras = IN_ORDER[name].split()
    if name == "TensorBoard":  # write_graph does not exist here, so the arguments after it are passed by name
        in_keras = in_keras[: in_keras.index("write_graph")]
    assert positional[: len(in_keras)] == in_keras


def test_a_positional_argument_too_many_raises_with_the_names(model: resfit.Model, tmp_path: Path) -> None:
    for call, message in (
        (lambda: callbacks.TensorBoard(tmp_path, 1, True), "TensorBoard got True after .* log_dir, histogram_freq. Expe"
         "cted the others by name: write_images, write_steps_per_second, update_freq"),
        (lambda: model.save(tmp_path / "a.safetensors", True), "save got True after .* path. Expected .* weights"),
        (lambda: model.compile("sgd", "mse", ["mae"], [1.0]), r"compile got \[1.0\] after .* metrics.* loss_weights"),
        (lambda: callbacks.SwapEMAWeights(True, 2), "SwapEMAWeights got 2 after .* swap_on_epoch. Expected no others"),
        (lambda: resfit.Model(PlainNet(rngs=nnx.Rngs(0)), 3), "Model got 3 after .* module. Expected no others"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=message):
            call()


def test_positional_hooks_of_lambda_callback_are_called() -> None:
    seen: list[Any] = []
    callback = callbacks.LambdaCallback(None, lambda epoch, logs: seen.append(epoch))
    callback.on_epoch_begin(3)
    callback.on_epoch_end(4, {})
    assert seen == [4]
    with pytest.raises(CallbackError, match="Expected on_epoch_begin to be a function, got 3"):
        callbacks.LambdaCallback(3)  # type: ignore[arg-type]


def test_arguments_of_callbacks_are_attributes(tmp_path: Path) -> None:
    csv = callbacks.CSVLogger(tmp_path / "log.csv", ";", True)
    assert (csv.filename, csv.sep, csv.append) == (tmp_path / "log.csv", ";", True)
    scheduler = callbacks.LearningRateScheduler(abs, verbose=1)
    assert (scheduler.schedule, scheduler.verbose) == (abs, 1)
    assert callbacks.SwapEMAWeights(swap_on_epoch=True).swap_on_epoch
    assert callbacks.TerminateOnNaN(raise_error=True).raise_error
    pytest.importorskip("tensorboardX")
    board = callbacks.TensorBoard(tmp_path, 2, write_images=True, write_steps_per_second=True, update_freq="batch")
    assert (board.log_dir, board.histogram_freq, board.write_images) == (tmp_path, 2, True)
    assert (board.write_steps_per_second, board.update_freq) == (True, "batch")


# --- calls ------------------------------------------------------------------------------------------------------------


def test_calls_of_fastai_and_keras_get_the_substitute(model: resfit.Model) -> None:
    net = PlainNet(rngs=nnx.Rngs(0))
    for call, error, message in (
        (lambda: model.fit(3, 1e-3), DataError, r"x is 3\. Expected images.*epochs=3"),
        (lambda: model.predict(2.5), DataError, r"x is 2\.5\. Expected images"),
        (lambda: model.summary(80), DataError, "a batch is 80.* or an input shape"),
        (
            lambda: resfit.Model(inputs=net, outputs=net),
            ArgumentError,
            r"Model got inputs=.*Use resfit\.Model\(module\)",
        ),
        (lambda: resfit.Model(net, name="net"), ArgumentError, "It needs nothing: a model has no name"),
        (lambda: model.compile("sgd", metrics=["error_rate"]), CompileError, r"Use metrics=\['accuracy'\]"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_words_of_a_model_do_not_hide_its_own_names() -> None:
    own = [name for name in dir(resfit.Model) if not name.startswith("_")]
    assert not [name for name in own if answer(name, "methods", "settings", "assignments", "members")]
