"""Compiler options for programs that run only a few times, for `jax.jit` and as the value of XLA_FLAGS."""

from __future__ import annotations

import importlib.metadata

# If the option is off, the CPU backend emits loops over single elements, which compile faster than fused kernels. The
# option was removed in JAX 0.11, and XLA rejects unknown options.
HAS_FUSION_EMITTER_OPTION = tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11)

# Dividing the code among threads takes longer than it saves for programs as small as those of the tests.
UNDIVIDED_CODE = {"xla_cpu_parallel_codegen_split_count": 1}

QUICK_COMPILATION = {
    **UNDIVIDED_CODE,
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **({"xla_cpu_use_fusion_emitters": False} if HAS_FUSION_EMITTER_OPTION else {}),
}
QUICK_COMPILATION_FLAGS = " ".join(f"--{name}={value}" for name, value in QUICK_COMPILATION.items()).lower()
