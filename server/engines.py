"""Engines: what those of one role may do, from the settings."""

from server.cluster.engine import EngineConfig
from server.operations.images import OPERATIONS
from server.settings import Settings


def engine_config(settings: Settings, *, is_background: bool) -> EngineConfig:
    """Return the limits of the engines of one role."""
    return EngineConfig(
        operations={name: operation.spec for name, operation in OPERATIONS.items()},
        limits={
            "max_pixels": settings.max_pixels,
            "max_lossless_pixels": settings.max_lossless_pixels,
            "max_frames": settings.max_frames,
            "max_total_pixels": settings.max_total_pixels,
            "max_result_bytes": settings.result_bytes,
        },
        nice=settings.engine_nice,
        timeout_s=settings.engine_timeout_s,
        memory_bytes=settings.engine_memory_bytes,
        max_tasks=settings.engine_max_tasks,
        result_bytes=settings.result_bytes,
        is_background=is_background,
        hung_after_s=settings.hung_after_s,
        is_jailed=settings.sandbox == "on",
    )
