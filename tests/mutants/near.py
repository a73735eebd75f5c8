"""The code that is mutated, and the tests that are likely to notice, the likeliest first."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Group:
    """Files whose mutants the same tests notice.

    Attributes:
      name: for tables.
      mutants: how many are sampled.
      files: patterns of paths.
      rows: patterns of tests below tests/, row by row. A row runs in one process, which stops at the first failure. All
        mutants go through their first row before one goes through its second, so that a run that is cut short has
        looked at each. The doctests of the mutated file come before the first row.
    """

    name: str
    mutants: int
    files: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _group(name: str, mutants: int, files: str, *rows: str) -> Group:
    return Group(name, mutants, tuple(files.split()), tuple(tuple(row.split()) for row in rows))


# In the order of how much the tests find for their cost. A file that moves is found by no pattern, and
# tests/test_mutants.py says so.
GROUPS = [
    _group(
        "trainer/step.py",
        17,
        "resfit/trainer/step.py resfit/trainer/norm_modes.py "
        "resfit/trainer/several_steps.py resfit/trainer/supervised.py",
        "trainer/state/test_set_state.py optimizers/test_finite.py properties/test_trainer*.py",
        "trainer/graph/test_modules.py trainer/test_step.py trainer/test_several_steps.py",
        "trainer/test_several_outputs.py test_dense.py",
        "test_preprocess.py trainer/test_lowering.py",
        "test_model.py trainer/state/test_ema.py",
        "trainer/test_accumulation.py trainer/graph/test_freeze.py trainer/loop/test_schedule*.py "
        "trainer/graph/test_attributes.py",
        "test_tutorial_trainer.py trainer/test_precision.py test_keras_contract.py "
        "trainer/devices/test_device_counts.py",
    ),
    _group(
        "trainer/loop/run.py",
        15,
        "resfit/trainer/loop/run.py resfit/trainer/loop/trainer.py resfit/trainer/loop/evaluator.py "
        "resfit/trainer/loop/predictor.py resfit/trainer/devices/feeding.py",
        "trainer/loop/test_validation.py callbacks/test_checkpoint.py trainer/devices/test_feeding.py",
        "trainer/loop/test_callback_list.py callbacks/test_terminate_on_nan.py trainer/test_several_steps.py",
        "data/test_bad_inputs.py test_preprocess.py trainer/test_lowering.py",
        "test_model.py trainer/state/test_ema.py",
        "trainer/devices/test_memory.py faults/test_other_epochs.py trainer/loop/test_interrupts.py "
        "trainer/loop/test_schedule*.py",
        "test_keras_contract.py test_tutorial_trainer.py faults/test_data.py faults/test_resume_again.py "
        "faults/test_rollback.py",
        "faults/test_cut_points.py",
    ),
    _group(
        "trainer/loop/fitting.py",
        13,
        "resfit/trainer/loop/fitting.py resfit/trainer/compiled.py resfit/trainer/config.py "
        "resfit/trainer/learned/facts.py "
        "resfit/trainer/learned/input_format.py resfit/trainer/learned/label_format.py resfit/trainer/learning_rate.py "
        "resfit/trainer/loop/fit_control.py resfit/trainer/state/snapshot.py resfit/trainer/learned/outputs.py",
        "trainer/test_config.py trainer/state/test_snapshot.py trainer/loop/test_schedule*.py data/test_relabeled.py",
        "test_preprocess.py test_multi_label.py faults/test_resumed_model.py transforms/test_transforms.py "
        "trainer/test_several_outputs.py",
        "test_model.py callbacks/test_checkpoint.py faults/test_rollback.py diagnostics/test_lr_finder.py",
        "faults/test_inexact.py faults/test_other_epochs.py trainer/loop/test_callback_list.py test_keras_contract.py",
        "multihost/test_two_processes.py errors/test_mistakes.py",
    ),
    _group(
        "trainer/state/train_state.py",
        14,
        "resfit/trainer/state/train_state.py resfit/trainer/state/run_state.py resfit/trainer/state/user_module.py "
        "resfit/trainer/state/threads.py resfit/trainer/copied_model.py",
        "trainer/state/test_*.py trainer/loop/test_validation.py export/test_saving.py",
        "test_model.py test_copies.py",
        "trainer/graph/test_outline.py trainer/graph/test_containers.py test_optimizers.py",
        "trainer/graph/test_freeze.py optimizers/test_parts.py trainer/loop/test_schedule*.py "
        "callbacks/test_checkpoint.py",
        "faults/test_resumed_model.py trainer/test_step.py trainer/graph/test_modules.py faults/test_rollback.py "
        "trainer/devices/test_device_counts.py",
    ),
    _group(
        "trainer/graph",
        15,
        "resfit/trainer/graph/*.py",
        "trainer/graph/test_nested_modes.py trainer/graph/test_passed_through.py trainer/state/test_set_state.py",
        "trainer/graph/test_modules.py trainer/graph/test_freeze.py trainer/graph/test_mode_table.py",
        "trainer/graph/test_containers.py trainer/graph/test_outline.py trainer/graph/test_attributes.py "
        "callbacks/test_terminate_on_nan.py diagnostics/test_doctor.py",
        "trainer/test_precision.py test_model.py nets/test_use.py trainer/devices/test_device_counts.py "
        "test_transformed_modules.py test_copies.py",
        "backends/onednn/test_fit.py errors/test_mistakes.py",
    ),
    _group(
        "nets/modes.py",
        6,
        "resfit/nets/modes.py resfit/nets/intercept.py",
        "trainer/graph/test_nested_modes.py nets/test_tutorial_defects.py",
        "nets/test_residual.py trainer/graph/test_freeze.py nets/test_use.py",
        "trainer/graph/test_modules.py test_own_parts.py diagnostics/test_doctor.py diagnostics/test_recalibrate.py",
        "nets/test_fold.py test_testing.py",
    ),
    _group(
        "nets/residual.py",
        8,
        "resfit/nets/residual.py",
        "nets/test_residual.py nets/test_squeeze.py",
        "nets/test_drop_path.py nets/test_tutorial_defects.py test_own_parts.py",
        "test_testing.py nets/test_resnet.py nets/test_geometry.py",
        "properties/test_blocks.py errors/test_mistakes.py",
    ),
    _group(
        "nets/blocks",
        9,
        "resfit/nets/blocks.py resfit/nets/preact_blocks.py",
        "nets/test_count.py nets/test_resnet.py",
        "nets/test_drop_path.py nets/test_residual.py nets/test_squeeze.py nets/test_geometry.py",
        "nets/test_pool.py nets/test_use.py test_golden_files.py test_variants.py",
        "properties/test_blocks.py nets/test_zoo.py weights/test_torch_oracle.py",
    ),
    _group(
        "nets/norm.py",
        6,
        "resfit/nets/norm.py",
        "nets/test_norm.py",
        "nets/test_tutorial_defects.py nets/test_residual.py nets/test_count.py",
        "nets/test_use.py test_own_parts.py trainer/test_precision.py nets/test_fold.py "
        "trainer/devices/test_device_counts.py",
    ),
    _group(
        "nets/shortcut.py",
        5,
        "resfit/nets/shortcut.py",
        "nets/test_residual.py nets/test_count.py",
        "nets/test_geometry.py nets/test_tutorial_defects.py nets/test_pool.py",
        "nets/test_resnet.py test_own_parts.py properties/test_blocks.py",
        "nets/test_zoo.py",
    ),
    _group(
        "callbacks/early_stopping.py",
        6,
        "resfit/callbacks/early_stopping.py resfit/callbacks/monitor.py",
        "callbacks/test_early_stopping.py callbacks/test_model_checkpoint.py callbacks/test_reduce*.py "
        "callbacks/test_resuming.py",
        "callbacks/test_measured_weights.py callbacks/test_all_together.py test_keras_contract.py test_testing.py",
    ),
    _group(
        "callbacks/model_checkpoint.py",
        8,
        "resfit/callbacks/model_checkpoint.py",
        "callbacks/test_model_checkpoint.py callbacks/test_resuming.py",
        "callbacks/test_measured_weights.py callbacks/test_all_together.py test_keras_contract.py test_testing.py",
        "faults/test_files.py",
    ),
    _group(
        "data/arrays.py",
        10,
        "resfit/data/sources/arrays.py resfit/data/values.py",
        "data/sources/test_arrays.py data/test_choose.py data/test_values.py properties/test_trainer_data.py",
        "data/test_bad_inputs.py data/test_relabeled.py test_multi_label.py",
        "test_model.py test_keras_contract.py",
        "faults/test_data.py errors/test_mistakes.py",
    ),
    _group(
        "data/iterables.py",
        8,
        "resfit/data/sources/iterables.py",
        "data/sources/test_iterables.py data/test_choose.py data/test_states.py",
        "data/streaming/test_stream.py data/test_bad_inputs.py data/sources/test_keras_dataset.py",
        "test_model.py faults/test_data.py",
        "trainer/loop/test_callback_list.py errors/test_mistakes.py",
    ),
    _group(
        "losses",
        15,
        "resfit/losses/*.py",
        "test_losses.py losses/test_*.py",
        "test_multi_label.py test_metrics.py test_distillation.py trainer/test_several_outputs.py test_dense.py "
        "_utils/test_habits.py",
        "data/test_bad_inputs.py test_model.py test_keras_contract.py _utils/test_foreign.py _utils/test_habits.py",
        "errors/test_mistakes.py",
    ),
    _group(
        "metrics",
        16,
        "resfit/metrics/*.py",
        "test_metrics.py metrics/test_*.py properties/test_trainer_metrics.py",
        "test_multi_label.py _utils/test_foreign.py _utils/test_habits.py trainer/test_several_outputs.py "
        "test_dense.py",
        "test_model.py trainer/loop/test_callback_list.py test_keras_contract.py",
        "errors/test_mistakes.py",
    ),
]
