"""Platform specifics. Networks and the trainer know each of them by one call only.

- `cpu_barrier`: a barrier in networks, which knows the platform that a program is traced for.
- `onednn`: convolutions that replace XLA's, handed to a plan as `trainer.graph.module_plan.Convolutions`.
- `allocator`: a context around fit, evaluate and predict in `Model`.
- `compilation_cache`: `use`, called before the first compilation.
- `program_cache`: compiles every step, for all platforms.

One table of hooks instead would hide which of them a call needs: they act when a module is traced, when a program is
lowered, when it is compiled, and while it runs.
"""
