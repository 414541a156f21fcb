"""Operations of the models, their loss and their search; all arrays in, arrays out, no modules.

Each file states its plain reference first: a few lines that say what the operation is. Below it stands what a platform
runs in its place, with the same arguments and results, and the measurement that justifies it. `forms` gathers both
forms: a model carries one of its tables, `FAST` unless `config.model.ops` is "reference".

The platform is chosen when a program is lowered (`jax.lax.platform_dependent`), not when it is traced: a TPU program
compiled on a CPU holds the TPU's form. Measurements are ratios of processor time to the reference's on two cores of a
CPU, with the gradient where training needs one, as printed by `python -m benchmarks.ops` (docs/performance.md).
"""
