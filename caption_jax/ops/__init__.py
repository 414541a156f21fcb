"""Operations of the models, their loss and their search; all arrays in, arrays out, no modules.

Each file states its plain reference first: a few lines that say what the operation is. Below it stands what a platform
runs in its place, with the same arguments and results, and the measurement that justifies it. `forms` gathers both
forms: a model carries one of its tables, `FAST` unless `config.model.ops` is "reference".

The platform is chosen when a program is lowered (`jax.lax.platform_dependent`), not when it is traced: a TPU program
compiled on a CPU holds the TPU's form. Measurements are ratios of processor time to the reference's on two cores of a
CPU, with the gradient where training needs one, as printed by `python -m benchmarks.ops` (docs/performance.md).

All code of `caption_jax/` that asks what it runs on (tests/test_architecture.py holds this list complete):

    ops/attend.py               on a CPU, small products of decoding as multiplications and sums
    ops/cross_entropy.py        on a CPU, a few rows of the logits at a time
    ops/dense.py                on a CPU, another order of the kernel gradient's factors
    ops/depthwise.py            on a CPU, sums of shifted copies of the image
    ops/norm_activation.py      on a CPU, the gradient before the activation is written to memory once
    ops/pointwise.py            on a CPU, gradients of flattened arrays
    ops/resample.py             gathered on a CPU, two matrix products elsewhere
    runs/description.py         `config.dtype` "auto": float32 on a CPU, bfloat16 elsewhere; on a CPU, XLA compiles the
                                initialiser without optimisation
    runtime/cached_program.py   the platform is part of the key of a traced program that the next start reads
    runtime/process.py          on Linux, a restart with huge pages for malloc; vectors of 512 bits for XLA:CPU
    training/batch_placer.py    `config.train.packing` "auto": captions packed into rows without pads on a CPU
    training/program.py         on one CPU, the update is such a cached program

Shaped by measurements on a CPU, but the same on every platform: `ops/caption_attention.py`, `ops/dropout.py`,
`ops/materialise.py`, `ops/segments.py` and `ops/top_k.py`; the sums of `augment.py`; the products of
`retrieval/search.py`.
"""
