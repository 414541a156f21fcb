"""Operations of the models, losses and beam search, as pure functions of arrays.

Each file defines an operation by a short reference implementation, followed by an optimised implementation with the
same arguments and results. `implementations` defines two sets of operations, `FAST` and `REFERENCE`. A model uses
`FAST` unless `config.model.ops` is "reference".

The platform is selected at lowering (`jax.lax.platform_dependent`), not at tracing, so a TPU program compiled on a CPU
host contains the TPU implementation. The speedups in the docstrings are ratios of CPU time, reference to optimised, on
two cores, measured by `python -m benchmarks.ops` (docs/performance_on_cpus.md).

The following code in `caption_jax/` depends on the platform (tests/test_architecture.py checks that the list is
complete):

    ops/attend.py               on a CPU, small matrix products of decoding are multiplications and sums
    ops/caption_attention.py    on a TPU, self-attention in blocks is computed in chunks
    ops/convolution.py          on a CPU, channels are padded and the kernel gradient is a matrix product; on a GPU, the
                                kernel gradient is computed in the dtype of the images
    ops/cross_entropy.py        size of the chunks of tokens whose logits are computed at a time
    ops/dense.py                on a CPU, the kernel gradient reads a transposed copy of the stored input
    ops/depthwise.py            on a CPU, convolutions are sums of shifted copies of the image
    ops/dropout.py              on a TPU, masks are generated in chunks
    ops/int8_product.py         on a CPU, the inputs are 8-bit integers too; elsewhere, the kernel is converted
    ops/mixed_precision.py      on a CPU, products in bfloat16 have float32 results, which are then rounded
    ops/norm_activation.py      on a CPU, the gradient before the activation is materialised
    ops/pointwise.py            on a CPU, gradients are products of flattened arrays, and kernels are scaled instead of
                                large images
    ops/resample.py             gathers on a CPU, two matrix products elsewhere
    runs/description.py         `config.dtype` "auto" is float32 on CPUs and on GPUs without bfloat16, and bfloat16
                                elsewhere; on a CPU, XLA compiles the initialiser without optimisation
    runtime/cached_program.py   the platform is part of the key of a cached program
    runtime/compilation_cache.py  with several CPU devices, compiled programs are not cached
    runtime/process.py          on Linux, the process restarts with huge pages for malloc; XLA:CPU uses 512-bit vectors
    training/batch_placer.py    `config.train.packing` "auto" is "blocks" on accelerators; length of the blocks
    training/program.py         on a single CPU device, the update is a cached program

The following code is optimised for CPUs, but is the same on all platforms: `ops/materialise.py`,
`ops/segments.py` and `ops/top_k.py`, the sums in `augment.py` and the matrix
products in `retrieval/search.py`. `ops/mixed_precision.py` changes nothing in float32. For
measurements on a GPU, see docs/results/h200.md.
"""
