"""The queues' names: fusions wait by the device that they need, and a webhook never waits behind a fusion."""

from __future__ import annotations

FUSION_CPU, FUSION_CUDA, IO = "fusion.cpu", "fusion.cuda", "io"
OF_FUSIONS = (FUSION_CPU, FUSION_CUDA)
QUEUES = (*OF_FUSIONS, IO)
