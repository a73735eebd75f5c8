"""The words of other libraries, with the name of the same thing in resfit, or the reason why it does not exist here.

Errors and docs/words.md come from this table. The words are those of Keras, and the words of
PyTorch Lightning, TorchMetrics, timm and fastai that users write at the same places.
"""

import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from resfit._utils.words_of_models import OF_MODELS
from resfit._utils.words_of_packages import OF_PACKAGES

_DEVICES = "`compile(dispatch='auto')`, which uses all devices"
_FUNCTION = "a function of (outputs, labels) that returns one value per example, written with `jax.numpy`"
_EXECUTIONS = "`compile(steps_per_execution=...)`"

# Place -> answer -> words, separated by spaces. An answer stands after "Use" or "Expected", with its code in backticks.
WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    **OF_MODELS,
    "arguments": {
        _EXECUTIONS: "steps_per_loop",
        "`metrics=[...]`, which count examples without weights; weights apply to the loss": "weighted_metrics",
        "`compile(precision='bfloat16')`, which needs no loss scaling": (
            "auto_scale_loss mixed_precision amp use_amp fp16 bf16"
        ),
        "`compile(learning_rate=...)`": (
            "lr lr_max max_lr lr_schedule lr_scheduler scheduler sched base_lr div pct_start warmup_epochs warmup_steps"
        ),
        "`compile(optimizer=...)` with a function of optax, such as `optax.sgd(0.1, momentum=0.9)`": (
            "momentum moms nesterov beta_1 beta_2 decay opt_args"
        ),
        "`loss=resfit.losses.CrossEntropy(label_smoothing=0.1)`": "label_smoothing",
        "nothing: losses and metrics read logits": "from_logits",
        "`model.freeze('stem', 'stage1')`, then compile": "freeze splitter freeze_epochs",
        "`resfit.create_model(..., num_classes=...)`": "num_classes",
        "`compile(weight_decay=...)`": "wd",
        "`compile(optimizer=...)`": "opt opt_func optim optimizers",
        "`compile(loss=...)`": "loss_func loss_fn criterion",
        "`compile(metrics=[...])`": "metric metrics_list eval_metric",
        "`compile(ema=0.999)`": "use_ema ema_momentum ema_overwrite_frequency ema_decay model_ema",
        "`compile(optimizer=resfit.optimizers.clip(...))`": (
            "clipnorm clipvalue global_clipnorm clip_norm clip_value clip_grad gradient_clip_val gradient_clip_norm "
            "gradient_clip_algorithm"
        ),
        "`compile(gradient_accumulation_steps=...)`": "accumulate_grad_batches accumulation_steps",
        _DEVICES: "devices accelerator strategy num_nodes distribute distribution distributed ddp gpus device",
        "`compile(batch_norm='global')`, the default": "sync_batchnorm sync_bn",
        "`compile(augment=...)`": "batch_tfms item_tfms transforms mixup cutmix",
        "`compile(augment=[resfit.augment.repeated_augmentation(k), ...])`": "aug_repeats repeated_aug",
        "`compile(augment=[..., resfit.augment.aug_mix(consistency=12)])`": "jsd_loss aug_splits",
        "`predict(tta='flip')` or `evaluate(tta='flip')`": "test_time_augmentation use_tta tta_level",
        "`compile(cpu_kernels=..., compiler_options=...)`": "backend pss_evaluation_shards",
        "nothing: sources of `resfit.data` read ahead in threads, and a `PyDataset` has its own `workers`": (
            "workers num_workers use_multiprocessing max_queue_size threads"
        ),
        "`fit(epochs=...)`": "max_epochs nb_epoch n_epoch n_epochs num_epochs n_cycle",
        "`fit(initial_epoch=...)`": "start_epoch",
        "`batch_size`": "batch bs",
        "`class_weight`": "class_weights",
        "`validation_split`": "valid_pct val_split",
        "`fit(steps_per_epoch=...)`": (
            "max_steps limit_train_batches samples_per_epoch nb_steps fast_dev_run overfit_batches"
        ),
        "`validation_steps`": "limit_val_batches nb_val_samples",
        "`validation_freq`": "check_val_every_n_epoch",
        "`validation_every`": "val_check_interval",
        "`fit(x, ...)`: any iterable of (x, y) batches": (
            "train_dataloaders train_dataloader train_loader generator datamodule dls dataset training_data ds "
            "train_ds images data"
        ),
        "`y`, or data that bring their labels": "labels target targets",
        "`fit(validation_data=...)`": (
            "val_dataloaders val_dataloader val_data val_loader valid_data valid_dl val_ds eval_set"
        ),
        "`fit(resume=True, callbacks=[resfit.callbacks.Checkpoint(folder)])`": (
            "ckpt_path resume_from_checkpoint resume_from default_root_dir"
        ),
        "`fit(callbacks=[...])`": "cbs callback",
        "`callbacks=[resfit.callbacks.EarlyStopping(patience=3)]`": "early_stopping patience",
        "`callbacks=[resfit.callbacks.ModelCheckpoint('best.safetensors', save_best_only=True)]`": (
            "save_best save_best_only"
        ),
        "`callbacks=[resfit.callbacks.Checkpoint(folder)]`": "checkpoint checkpoint_dir save_dir model_dir",
        "`callbacks=[resfit.callbacks.Profiler(folder)]`": "profiler",
        "`callbacks=[resfit.callbacks.TensorBoard(...)]` or another logger": (
            "logger loggers log_every log_every_n_steps tensorboard"
        ),
        "`verbose=0` to show nothing, `verbose=1` for a progress bar": (
            "show_progress enable_progress_bar progress enable_model_summary"
        ),
        "`compile(seed=...)`": "random_state deterministic random_seed",
        "nothing: `fit`, `evaluate` and `predict` set the mode of the module": "training train",
        "`evaluate(return_dict=True)`": "as_dict",
        "nothing: each call starts with new metrics": "reset_metrics reset_opt",
        "nothing: `save` replaces a file at the path": "overwrite",
        "nothing: the format is safetensors": "save_format",
        "`resfit.load(path, module=...)` for a custom class": "custom_objects safe_mode",
        "nothing: the table shows all parts, with their numbers of trained and frozen parameters": (
            "print_fn line_length positions expand_nested show_trainable layer_range col_names depth"
        ),
        "`predict(outputs='probabilities')`": "return_probabilities with_decoded act",
    },
    "exported arguments": {
        "nothing: an exported program predicts the images as they are. Export with outputs='probabilities', and "
        "average `predict(x)` and `predict(x[:, :, ::-1])`": "tta",
        "`model.export(outputs=...)`, which decides the outputs of the file": "outputs",
        "`model.export(weights='ema')`, which decides the weights of the file": "weights",
        "nothing: `predict` of an exported program takes arrays and reports nothing": "verbose steps callbacks",
    },
    "data arguments": {
        "`size`, in pixels": "image_size img_size target_size resize input_size",
        "`mode`, such as \"L\" for gray images": "color_mode",
        "`classes`, the names in the order of their numbers": "class_names",
        "`folder(path).split(0.2)`, which returns the training and the validation part, or "
        "`fit(folder, validation_split=0.2)`": (
            "validation_split val_split test_size valid_pct subset"
        ),
        "`path`": "directory root img_dir",
        "`threads`": "num_workers workers",
        "`fit(batch_size=...)`": "batch_size bs",
        "`fit(shuffle=...)`, with the seed of `compile(seed=...)`": "shuffle seed",
        "`compile(augment=...)`, and `crop` for random crops": "transform transforms augment tfms item_tfms",
        "nothing: the folders give the labels": "label_mode class_mode target_transform",
        "`crop='center'`": "crop_to_aspect_ratio center_crop",
        "`on_error=\"skip\"` to leave out broken files": "is_valid_file ignore_errors",
    },
    "function arguments": {
        "`learning_rate`": "lr",
        "`peak`": "initial_learning_rate max_lr base_lr max_learning_rate",
        "`end`": "eta_min min_lr final_lr",
        "`b1` and `b2`": "beta_1 beta_2 betas beta1 beta2",
        "`eps`": "epsilon",
        "`weight_decay`": "wd",
        "`probability`": "p prob",
        "`pixels`": "padding",
        "`scale`": "area_range",
        "`n`": "num_ops num_layers",
        "`m`": "magnitude",
        "`window`": "kernel_size pool_size",
        "`strides`": "stride",
        "`at`": "milestones boundaries step_size",
        "`drop`": "gamma decay_rate",
        "`rise`": "pct_start",
        "`warmup_epochs`": "warmup warmup_steps num_warmup_steps warmup_t",
        "nothing: `fit` sets the number of steps": "T_max total_steps decay_steps t_initial num_training_steps",
        "`path`": "filename filepath file file_path checkpoint_path ckpt_path fp",
        "`mapping`": "state_dict",
        "`ignore` for entries that the network must not load, and `head='reset'` for other classes": (
            "strict skip_mismatch by_name assign"
        ),
        "nothing: arrays are placed on a device by `compile(dispatch=...)`": "map_location device",
        "nothing: reading a file never executes anything in it": "weights_only safe_mode custom_objects",
        "nothing: losses and metrics read logits": "from_logits",
        "`ignore_index`": "ignore_class",
        "`per_class=True` for one value per class; the default is the mean over the classes": "average",
        "`labels` and `predictions`": "y_true y_pred",
        "`part`": "layer layer_name target_layer target_layers",
        "`pattern`": "filter",
        "`steps`": "num_training num_it num_iter",
        "`x`": "data dataset dataloader",
        "nothing: both parts are returned, `(x, y), (x_test, y_test)`": "train is_train",
        "`size`": "image_size img_size",
        "`processes`": "world_size num_processes",
        "`trials`": "n_trials max_trials num_trials num_samples n_iter",
        "`monitor`": "objective scoring",
        "`epochs`": "max_epochs n_epochs num_epochs",
        "`k`": "num_repeats repeats top_k",
        "`process`": "rank process_id",
        "`coordinator`": "master_addr init_method coordinator_address",
    },
    "callback arguments": {
        "`save_freq`, \"epoch\" or a number of steps": "period every_n_epochs every_n_train_steps every_epoch",
        "`keep`, the number of files to keep": "save_top_k max_to_keep save_total_limit",
        "`filepath`, a template such as 'runs/{epoch:02d}.safetensors'": "dirpath filename fname file_path path",
        "`resfit.callbacks.Checkpoint(folder)`, which saves a run at its end too": (
            "save_last save_on_train_end with_opt backup_dir"
        ),
        "`min_delta`": "epsilon threshold delta",
        "`start_epoch`": "swa_epoch_start swa_start",
        "`learning_rate`": "swa_lrs swa_lr",
        "`mode`, \"min\" or \"max\"": "comp direction greater_is_better",
        "`monitor`": "metric metric_name quantity",
        "`restore_best_weights`": "restore_best load_best_model_at_end",
        "`patience`": "tolerance early_stopping_patience",
        "`resfit.callbacks.TerminateOnNaN()`": "check_finite divergence_threshold",
        "`baseline`, or a custom callback that sets `model.stop_training = True`": "stopping_threshold",
        "nothing: a name that the logs lack is reported in the log `resfit`": "strict",
        "nothing: an epoch is judged after its validation": "check_on_train_epoch_end",
        "`resfit.callbacks.Checkpoint(folder)` for exact resume; a model file holds no optimizer state": (
            "options save_optimizer"
        ),
        "`resfit.callbacks.Profiler`": "profile_batch",
        "`model.summary()`": "write_graph",
        "`model.predict(x, outputs='embedding')`": "embeddings_freq embeddings_metadata embeddings_data",
        "`min_lr`": "min_learning_rate eta_min",
        "`log_dir`": "save_dir logdir",
    },
    "network": {
        "`resfit.create_model(..., weights=...)` or `resfit.weights.load` to read weights": (
            "weights pretrained checkpoint_path pretrained_cfg"
        ),
        "`num_classes`": "classes nb_classes n_classes n_out",
        "`in_channels`": "in_chans input_channels n_in",
        "`in_channels`; a network accepts images of any size": "input_shape img_size input_tensor",
        "`predict(outputs='embedding')` of a model for the pooled features": (
            "include_top pooling global_pool features_only cut"
        ),
        "`drop_path`": "drop_path_rate stochastic_depth_prob",
        "`head_dropout`": "drop_rate",
        "`zero_init_last`": "zero_init_residual",
        "`groups`, `width_per_group`": "cardinality base_width",
        "`norm`": "norm_layer",
        "`antialias`": "aa_layer",
        "`output_stride`": "replace_stride_with_dilation",
        "`remat`": "grad_checkpointing",
        "`rngs`": "seed",
    },
    "loss": {
        "`loss='cross_entropy'`, which reads class numbers and one-hot labels (with label smoothing: "
        "`resfit.losses.CrossEntropy(label_smoothing=0.1)`)": (
            "CategoricalCrossentropy SparseCategoricalCrossentropy CrossEntropyLoss cross_entropy NLLLoss log_loss "
            "softmax_cross_entropy CrossEntropyLossFlat LabelSmoothingCrossEntropy SoftTargetCrossEntropy ce nll"
        ),
        "`loss='binary_cross_entropy'` (with options: `resfit.losses.BinaryCrossEntropy`)": (
            "BinaryCrossentropy BCE BCELoss BCEWithLogitsLoss binary_cross_entropy_with_logits "
            "MultiLabelSoftMarginLoss BCEWithLogitsLossFlat sigmoid_cross_entropy"
        ),
        "`loss='cross_entropy'` with `compile(augment=[..., resfit.augment.aug_mix(consistency=12)])`": (
            "JsdCrossEntropy"
        ),
        "`loss=resfit.losses.Focal(gamma=2.0)`": "BinaryFocalCrossentropy CategoricalFocalCrossentropy FocalLoss",
        "`loss='mean_squared_error'`": "MeanSquaredError mse MSELoss MSELossFlat l2 l2_loss",
        "`loss='mean_absolute_error'`": "MeanAbsoluteError mae L1Loss L1LossFlat l1",
        "`loss='huber'`": "Huber HuberLoss SmoothL1Loss smooth_l1",
        "`loss='log_cosh'`": "LogCosh",
        "`loss='cosine_similarity'`": "CosineSimilarity CosineEmbeddingLoss cosine_proximity",
        "`loss='kl_divergence'`": "KLDivergence KLDivLoss kl_div kld kullback_leibler_divergence",
        "`loss='poisson'`": "Poisson PoissonNLLLoss",
        "`loss='hinge'`": "Hinge HingeEmbeddingLoss",
        "`loss='mean_absolute_percentage_error'`": "MeanAbsolutePercentageError mape",
        "`loss='mean_squared_logarithmic_error'`": "MeanSquaredLogarithmicError msle",
        f"{_FUNCTION}: `jnp.square(resfit.losses.hinge(outputs, labels))` for one output": "SquaredHinge",
        f"{_FUNCTION}: `optax.losses.multiclass_hinge_loss(outputs, labels)`": "CategoricalHinge MultiMarginLoss",
        f"{_FUNCTION}: `optax.losses.ctc_loss`": "CTC CTCLoss",
        _FUNCTION: "dice DiceLoss Tversky triplet TripletMarginLoss contrastive",
    },
    "metrics": {
        "`metrics=['accuracy']`": (
            "Accuracy BinaryAccuracy CategoricalAccuracy SparseCategoricalAccuracy MulticlassAccuracy "
            "MultilabelAccuracy accuracy_score error_rate accuracy_multi top1"
        ),
        "`metrics=['top_5_accuracy']`": (
            "TopKCategoricalAccuracy SparseTopKCategoricalAccuracy top_k_accuracy_score top_k_accuracy top5"
        ),
        "`metrics=['auc']`": "AUC AUROC BinaryAUROC MulticlassAUROC MultilabelAUROC roc_auc_score roc_auc",
        "`metrics=['precision']`": "Precision BinaryPrecision MulticlassPrecision MultilabelPrecision precision_score",
        "`metrics=['recall']`": "Recall BinaryRecall MulticlassRecall MultilabelRecall recall_score",
        "`metrics=['f1']`": "F1 F1Score BinaryF1Score MulticlassF1Score MultilabelF1Score fbeta_score",
        "`metrics=['confusion_matrix']`": "ConfusionMatrix BinaryConfusionMatrix MulticlassConfusionMatrix",
        "`metrics={'mean_iou': resfit.metrics.mean_iou(num_classes)}`": (
            "MeanIoU IoU OneHotMeanIoU OneHotIoU BinaryIoU JaccardIndex BinaryJaccardIndex MulticlassJaccardIndex "
            "MultilabelJaccardIndex jaccard_score jaccard iou miou"
        ),
        "`metrics=['calibration_error']`": "CalibrationError BinaryCalibrationError MulticlassCalibrationError ece",
        "`metrics=['cross_entropy']`": (
            "CrossEntropy BinaryCrossentropy CategoricalCrossentropy SparseCategoricalCrossentropy log_loss"
        ),
        "`metrics=['mean_squared_error']`": "MeanSquaredError mse",
        "`metrics=['mean_absolute_error']`": "MeanAbsoluteError mae",
        "the square root of `metrics=['mean_squared_error']`": "RootMeanSquaredError rmse",
        "`metrics=['confusion_matrix']`, which determines the value": (
            "BalancedAccuracy balanced_accuracy_score kappa cohen_kappa mcc specificity sensitivity"
        ),
        "nothing: `fit(validation_data=...)` reports `val_loss` and the other values of a validation": "val_loss",
    },
    "optimizer": {
        **{
            f"`optimizer={name!r}, learning_rate=...`": name
            for name in ("sgd", "adam", "adamw", "lamb", "lars", "muon", "rmsprop")
        },
        "`optimizer='sgd'`, which has momentum 0.9 and Nesterov": "momentum nesterov",
        "`resfit.schedules`": "schedules lr_schedule",
        **{
            f"`optimizer=optax.{name}, learning_rate=...`": name
            for name in ("adadelta", "adafactor", "adagrad", "adamax", "lbfgs", "lion", "nadam", "nadamw", "radam")
        },
        "`optimizer=resfit.optimizers.sam(resfit.optimizers.sgd(0.1))`": "SAM",
        "`optimizer=optax.lookahead(...)`": "Lookahead",
    },
    "callbacks": {
        **{
            f"`resfit.callbacks.{name}`": name
            for name in (
                "CSVLogger", "EarlyStopping", "LambdaCallback", "LearningRateScheduler", "ModelCheckpoint",
                "ReduceLROnPlateau", "StochasticWeightAveraging", "SwapEMAWeights", "TensorBoard", "TerminateOnNaN",
                "Timer",
            )
        },
        "`resfit.callbacks.Checkpoint(folder)` with `fit(resume=True)`": "BackupAndRestore",
        "`resfit.callbacks.ModelCheckpoint` or `EarlyStopping`": "SaveModelCallback EarlyStoppingCallback",
        "nothing: `fit` returns a `History`": "History",
        "`fit(verbose=1)`": "ProgbarLogger TQDMProgressBar RichProgressBar ProgressBar",
        "`model.freeze(...)`, then compile": "BaseFinetuning BackboneFinetuning",
        "`resfit.callbacks.Throughput` or `Timer`": "DeviceStatsMonitor ThroughputMonitor",
        "`compile(gradient_accumulation_steps=...)`": "GradientAccumulationScheduler GradientAccumulation",
        "`compile(ema=...)`": "WeightAveraging EMAWeightAveraging EMACallback",
        "`compile(augment=resfit.augment.mixup(0.2))`": "MixUp CutMix",
        "nothing: the learning rate of a schedule is in every epoch's logs": "LearningRateMonitor",
        "`resfit.callbacks.WeightsAndBiases`": "WandbCallback WandbMetricsLogger",
        "`resfit.callbacks.JSONLogger`, or a `resfit.callbacks.Callback` that sends the logs": "RemoteMonitor",
        "`resfit.callbacks.Checkpoint(folder)`, which uses Orbax": "OrbaxCheckpoint",
        "`resfit.callbacks.Callback`": "MonitorCallback CallbackList BaseLogger",
    },
    **OF_PACKAGES,
}  # fmt: skip


# Places of names that users write as text, or that belong to classes: case and underscores do not matter.
_NAMES = ("loss", "metrics", "optimizer", "callbacks", "schedules")


def plain(name: str) -> str:
    """Return a name without case and underscores.

    Example:
      >>> plain("EarlyStopping") == plain("early_stopping")
      True
    """
    return name.lower().replace("_", "")


def _key(place: str, word: str) -> str:
    return plain(word) if place in _NAMES else word


_ANSWERS = {
    place: {_key(place, word): answer.replace("`", "") for answer, words in rows.items() for word in words.split()}
    for place, rows in WORDS.items()
}


def answer(word: str, *places: str) -> str | None:
    """Return the answer for a word of another library at the first of some places that has it, or None.

    Args:
      word: a name; for a loss, metric, optimizer or callback in any case, with or without underscores.
      places: keys of `WORDS`; any other place has no words.

    Example:
      >>> answer("L1Loss", "loss")
      "loss='mean_absolute_error'"
      >>> answer("layout", "members") is None
      True
    """
    return next((found for place in places if (found := _ANSWERS.get(place, {}).get(_key(place, word)))), None)


def use(word: str, *places: str) -> str:
    """Return the sentence of an error message that answers a word, or an empty text.

    Example:
      >>> use("L1Loss", "loss"), use("strict", "callback arguments")[:17], use("layout", "members")
      ("Use loss='mean_absolute_error'.", 'It needs nothing:', '')
    """
    found = answer(word, *places)
    if found is None:
        return ""
    return f"It needs {found}." if found.startswith(("no ", "nothing")) else f"Use {found}."


def no_attribute(module: str, *places: str, modules: Collection[str] = ()) -> Callable[[str], Any]:
    """Return the `__getattr__` of a subpackage, whose error names the substitute of a word of another library.

    Args:
      module: the name of the subpackage.
      places: keys of `WORDS`.
      modules: modules in it that are imported when they are read, because not every program needs their packages.

    Example:
      >>> try:
      ...     no_attribute("resfit.losses", "loss")("L1Loss")
      ... except AttributeError as error:
      ...     print(error.args[0])
      module 'resfit.losses' has no attribute 'L1Loss'. Use loss='mean_absolute_error'.
    """

    def missing(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{module}.{name}")
        message = f"module {module!r} has no attribute {name!r}"
        sentence = use(name, *places)
        raise AttributeError(f"{message}. {sentence}" if sentence else message, name=name, obj=sys.modules.get(module))

    return missing


def same_word(name: str, known: Iterable[str]) -> str:
    """Return the known name that is the same word in another case, or the name itself.

    Example:
      >>> same_word("Adam", ["sgd", "adam"]), same_word("MeanSquaredError", ["mean_squared_error"])
      ('adam', 'mean_squared_error')
    """
    known = list(known)
    return name if name in known else next((other for other in known if plain(other) == plain(name)), name)
