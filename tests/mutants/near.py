"""What is mutated, and the tests that are likely to notice, the likeliest first."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Group:
    """Files whose mutants the same tests notice.

    Attributes:
      name: for tables.
      mutants: how many are sampled.
      files: patterns of paths.
      near: patterns of tests to run first, below tests/. The doctests of the mutated file come before them.
      wide: patterns of tests to run if none of those fails.
    """

    name: str
    mutants: int
    files: tuple[str, ...]
    near: tuple[str, ...]
    wide: tuple[str, ...]


def _group(name: str, mutants: int, files: str, near: str, wide: str) -> Group:
    return Group(name, mutants, tuple(files.split()), tuple(near.split()), tuple(wide.split()))


# Tests in the order of how much they find for their cost: one process runs those of a row, and stops at the first
# failure. A file that moves is found by no pattern, which costs time and hides nothing: `--whole` runs all others.
GROUPS = [
    _group(
        "engine/step.py",
        13,
        "resfit/engine/step.py",
        "engine/test_step.py engine/test_set_state.py test_model.py engine/test_ema.py engine/test_accumulation.py",
        "engine/test_modules.py engine/test_freeze.py engine/test_schedule*.py optimizers/test_finite.py "
        "engine/test_attributes.py test_tutorial_trainer.py engine/test_precision.py test_keras_contract.py "
        "properties/test_trainer*.py engine/test_device_counts.py",
    ),
    _group(
        "engine/loop.py",
        13,
        "resfit/engine/loop.py",
        "engine/test_hooks.py engine/test_validation.py callbacks/test_checkpoint.py test_model.py",
        "callbacks/test_terminate_on_nan.py faults/test_other_epochs.py engine/test_memory.py "
        "engine/test_signals.py engine/test_schedule*.py test_keras_contract.py test_tutorial_trainer.py "
        "data/test_bad_inputs.py faults/test_data.py faults/test_resume_again.py faults/test_rollback.py "
        "faults/test_cut_points.py",
    ),
    _group(
        "engine/state.py",
        12,
        "resfit/engine/state.py",
        "engine/test_set_state.py test_model.py engine/test_ema.py test_saving.py",
        "engine/test_outline.py engine/test_containers.py engine/test_freeze.py test_optimizers.py "
        "optimizers/test_parts.py engine/test_schedule*.py faults/test_resumed_model.py engine/test_step.py "
        "callbacks/test_checkpoint.py engine/test_modules.py faults/test_rollback.py engine/test_device_counts.py",
    ),
    _group(
        "engine/modes.py",
        10,
        "resfit/engine/modes.py",
        "engine/test_nested_modes.py engine/test_freeze.py engine/test_modules.py engine/test_containers.py",
        "engine/test_precision.py engine/test_outline.py engine/test_attributes.py callbacks/test_terminate_on_nan.py "
        "test_doctor.py nets/test_use.py test_model.py engine/test_device_counts.py kernels/test_fit.py",
    ),
    _group(
        "nets/modes.py",
        6,
        "resfit/nets/modes.py",
        "engine/test_nested_modes.py nets/test_tutorial_defects.py engine/test_freeze.py nets/test_use.py",
        "engine/test_modules.py test_own_parts.py nets/test_residual.py test_doctor.py test_recalibration.py "
        "nets/test_fold.py test_testing.py",
    ),
    _group(
        "nets/residual.py",
        8,
        "resfit/nets/residual.py",
        "nets/test_residual.py nets/test_drop_path.py nets/test_tutorial_defects.py",
        "test_own_parts.py test_testing.py nets/test_squeeze.py nets/test_resnet.py nets/test_geometry.py "
        "properties/test_blocks.py errors/test_mistakes.py",
    ),
    _group(
        "nets/blocks",
        9,
        "resfit/nets/blocks.py resfit/nets/preact_blocks.py",
        "nets/test_residual.py nets/test_count.py nets/test_resnet.py nets/test_pool.py",
        "nets/test_geometry.py nets/test_use.py nets/test_drop_path.py test_golden_files.py test_variants.py "
        "properties/test_blocks.py nets/test_zoo.py weights/test_torch_oracle.py",
    ),
    _group(
        "nets/norm.py",
        6,
        "resfit/nets/norm.py",
        "nets/test_norm.py nets/test_tutorial_defects.py",
        "nets/test_residual.py nets/test_use.py test_own_parts.py nets/test_count.py engine/test_precision.py "
        "nets/test_fold.py engine/test_device_counts.py",
    ),
    _group(
        "nets/shortcut.py",
        5,
        "resfit/nets/shortcut.py",
        "nets/test_residual.py nets/test_geometry.py nets/test_count.py",
        "nets/test_tutorial_defects.py nets/test_pool.py nets/test_resnet.py test_own_parts.py "
        "properties/test_blocks.py nets/test_zoo.py",
    ),
    _group(
        "callbacks/early_stopping.py",
        6,
        "resfit/callbacks/early_stopping.py resfit/callbacks/monitor.py",
        "callbacks/test_early_stopping.py callbacks/test_model_checkpoint.py callbacks/test_reduce*.py",
        "callbacks/test_resuming.py callbacks/test_measured_weights.py test_keras_contract.py "
        "callbacks/test_all_together.py test_testing.py",
    ),
    _group(
        "callbacks/model_checkpoint.py",
        8,
        "resfit/callbacks/model_checkpoint.py",
        "callbacks/test_model_checkpoint.py callbacks/test_resuming.py",
        "callbacks/test_measured_weights.py test_keras_contract.py callbacks/test_all_together.py test_testing.py "
        "faults/test_files.py",
    ),
    _group(
        "data/arrays.py",
        8,
        "resfit/data/arrays.py",
        "data/test_arrays.py data/test_choose.py data/test_values.py test_model.py",
        "properties/test_trainer_data.py data/test_bad_inputs.py test_multi_label.py data/test_relabeled.py "
        "test_keras_contract.py faults/test_data.py errors/test_mistakes.py",
    ),
    _group(
        "data/iterables.py",
        8,
        "resfit/data/iterables.py",
        "data/test_iterables.py data/test_states.py data/test_stream.py test_model.py",
        "data/test_bad_inputs.py data/test_keras_dataset.py data/test_choose.py faults/test_data.py "
        "engine/test_hooks.py errors/test_mistakes.py",
    ),
    _group(
        "losses",
        10,
        "resfit/losses/*.py",
        "test_losses.py losses/test_*.py test_multi_label.py test_model.py",
        "test_distillation.py data/test_bad_inputs.py test_metrics.py test_keras_contract.py test_foreign.py "
        "errors/test_mistakes.py",
    ),
    _group(
        "metrics",
        12,
        "resfit/metrics/*.py",
        "test_metrics.py metrics/test_*.py properties/test_trainer_metrics.py test_multi_label.py",
        "test_model.py engine/test_hooks.py test_keras_contract.py test_foreign.py errors/test_mistakes.py",
    ),
]
