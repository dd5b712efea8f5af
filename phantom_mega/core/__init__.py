"""The MMDiT on megatron-core: tensor, sequence, pipeline and data parallel.

Importing this package first makes megatron-core usable on CPU (nothing changes with a GPU) and keeps it from libraries
that only look like those it knows: import no megatron before.
"""

from phantom_mega.core import cpu_backend, fused_libraries

fused_libraries.hide_unusable()
cpu_backend.install()

from phantom_mega.core import megatron_fixes  # noqa: E402 (imports megatron)

megatron_fixes.apply()
