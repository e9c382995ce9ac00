"""Settings of every process of the service, read from the environment; without any, one machine needs nothing else."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, FilePath, IPvAnyNetwork, PositiveFloat, PositiveInt, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """One field an environment variable.

    ``BROKER_URL`` and ``DATABASE_URL`` replace the embedded parts by real ones, one by one.
    """

    # Errors never quote what was given: addresses hold passwords.
    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True)

    data_dir: Path = Field(Path("cogram-data"), validation_alias="COGRAM_DATA_DIR", description="all files")
    database_url: str | None = Field(
        None,
        pattern=r"^(postgres(ql)?(\+psycopg)?|sqlite(\+pysqlite)?)://.",
        validation_alias="DATABASE_URL",
        description="else SQLite",
    )
    broker_url: str | None = Field(None, validation_alias="BROKER_URL", description="else embedded")
    host: str = Field("127.0.0.1", validation_alias="COGRAM_HOST")
    port: int = Field(8765, ge=0, le=65535, validation_alias="COGRAM_PORT")
    lease_seconds: PositiveFloat = Field(60.0, validation_alias="COGRAM_LEASE_SECONDS")
    heartbeat_seconds: PositiveFloat = Field(10.0, validation_alias="COGRAM_HEARTBEAT_SECONDS")
    stall_seconds: PositiveFloat = Field(
        1800.0,
        validation_alias="COGRAM_STALL_SECONDS",
        description="a fusion that gives no sign of life for so long is taken from its process",
    )
    workers: PositiveInt = Field(
        1, validation_alias="COGRAM_WORKERS", description="processes of cogram serve that run fusions"
    )
    max_attempts: PositiveInt = Field(3, validation_alias="COGRAM_MAX_ATTEMPTS")
    republish_seconds: PositiveFloat = Field(120.0, validation_alias="COGRAM_REPUBLISH_SECONDS")
    poll_seconds: PositiveFloat = Field(0.2, validation_alias="COGRAM_POLL_SECONDS", description="outbox, cancel flag")
    heartbeat_comment_seconds: PositiveFloat = Field(
        15.0, validation_alias="COGRAM_HEARTBEAT_COMMENT_SECONDS", description="a silent event stream says it lives"
    )
    min_free_bytes: int = Field(
        256 * 2**20, ge=0, validation_alias="COGRAM_MIN_FREE_BYTES", description="below it the service is not ready"
    )
    max_upload_bytes: PositiveInt = Field(200 * 2**30, validation_alias="COGRAM_MAX_UPLOAD_BYTES")
    upload_expiry_hours: PositiveFloat = Field(
        24.0,
        validation_alias="COGRAM_UPLOAD_EXPIRY_HOURS",
        description="a resumable upload without a new byte ends then",
    )
    body_idle_seconds: PositiveFloat = Field(
        60.0,
        validation_alias="COGRAM_BODY_IDLE_SECONDS",
        description="an upload's body that brings nothing is 408 then",
    )
    take_idle_seconds: PositiveFloat = Field(
        600.0,
        validation_alias="COGRAM_TAKE_IDLE_SECONDS",
        description="a connection ends then of whose waiting answer nothing at all is taken",
    )
    body_min_bytes_per_second: int = Field(
        1024,
        ge=0,
        validation_alias="COGRAM_BODY_MIN_BYTES_PER_SECOND",
        description="in each such span; less is 408, too",
    )
    trace_min_bytes_per_second: int = Field(
        64 * 2**10,
        ge=0,
        validation_alias="COGRAM_TRACE_MIN_BYTES_PER_SECOND",
        description="who takes a trace more slowly loses it, as few can be read at once; 0: nobody does",
    )
    max_json_bytes: PositiveInt = Field(2**20, validation_alias="COGRAM_MAX_JSON_BYTES")
    max_json_depth: PositiveInt = Field(64, validation_alias="COGRAM_MAX_JSON_DEPTH", description="of a recipe")
    max_yaml_bytes: PositiveInt = Field(
        64 * 2**10, validation_alias="COGRAM_MAX_YAML_BYTES", description="of a recipe in YAML, which is slow to read"
    )
    max_head_bytes: PositiveInt = Field(
        32 * 2**10, validation_alias="COGRAM_MAX_HEAD_BYTES", description="of all headers together"
    )
    max_headers: PositiveInt = Field(100, validation_alias="COGRAM_MAX_HEADERS")
    max_target_bytes: PositiveInt = Field(
        8 * 2**10, validation_alias="COGRAM_MAX_TARGET_BYTES", description="of the path and query of a request"
    )
    max_connections: PositiveInt = Field(4096, validation_alias="COGRAM_MAX_CONNECTIONS")
    max_requests: PositiveInt = Field(
        2048, validation_alias="COGRAM_MAX_REQUESTS", description="answered at once; long polls and followers count"
    )
    max_requests_per_peer: PositiveInt = Field(
        1024, validation_alias="COGRAM_MAX_REQUESTS_PER_PEER", description="the same, of one address"
    )
    head_seconds: PositiveFloat = Field(
        20.0, validation_alias="COGRAM_HEAD_SECONDS", description="until the head of a request is whole"
    )
    keep_alive_seconds: PositiveInt = Field(
        30, validation_alias="COGRAM_KEEP_ALIVE_SECONDS", description="an idle connection stays open so long"
    )

    blob_url: str | None = Field(
        None,
        pattern="^(s3|gs|az)://.",
        validation_alias="BLOB_URL",
        description="s3://bucket/prefix, gs:// or az://; else the local disk",
    )
    blob_cache_bytes: int = Field(
        100 * 2**30,
        ge=0,
        validation_alias="COGRAM_BLOB_CACHE_BYTES",
        description="of BLOB_URL's blobs, kept on local disk",
    )
    blob_patience_seconds: PositiveFloat = Field(
        30.0,
        validation_alias="COGRAM_BLOB_PATIENCE_SECONDS",
        description="a storage that does not answer is asked again so long",
    )
    cache_bytes: int = Field(
        10 * 2**30,
        ge=0,
        validation_alias="COGRAM_CACHE_BYTES",
        description="of statistics of checkpoints, kept for later fusions; 0: none are kept",
    )
    presigned_seconds: int = Field(
        0,
        ge=0,
        le=7 * 86400,
        validation_alias="COGRAM_PRESIGNED_SECONDS",
        description="downloads are redirected to BLOB_URL's storage, by links that hold so long; 0: they are not",
    )
    collect_seconds: PositiveFloat = Field(
        60.0, validation_alias="COGRAM_COLLECT_SECONDS", description="between two looks for blobs that nobody needs"
    )
    collect_grace_seconds: PositiveFloat = Field(
        3600.0,
        validation_alias="COGRAM_COLLECT_GRACE_SECONDS",
        description="a blob without a reference stays so long; longer than storing any result takes",
    )
    keep_fusions_days: float = Field(
        0,
        ge=0,
        validation_alias="COGRAM_KEEP_FUSIONS_DAYS",
        description="after their end, with all results; 0: for ever",
    )
    keep_loose_files_days: float = Field(
        7.0,
        ge=0,
        validation_alias="COGRAM_KEEP_LOOSE_FILES_DAYS",
        description="uploaded, and never made a checkpoint or dataset; 0: for ever",
    )
    keep_unused_inputs_days: float = Field(
        0,
        ge=0,
        validation_alias="COGRAM_KEEP_UNUSED_INPUTS_DAYS",
        description="checkpoints and datasets that no fusion uses, since they were made; 0: for ever",
    )
    keep_idempotent_calls_days: float = Field(
        2.0,
        ge=1,
        validation_alias="COGRAM_KEEP_IDEMPOTENT_CALLS_DAYS",
        description="answers that are repeated under the same Idempotency-Key",
    )

    examiners: PositiveInt = Field(
        2, validation_alias="COGRAM_EXAMINERS", description="processes that read uploaded headers at once"
    )
    examine_memory_bytes: int = Field(
        1536 * 2**20, ge=256 * 2**20, validation_alias="COGRAM_EXAMINE_MEMORY_BYTES", description="of each of them"
    )
    examine_cpu_seconds: PositiveInt = Field(
        40, validation_alias="COGRAM_EXAMINE_CPU_SECONDS", description="processor time for one request's headers"
    )
    examine_seconds: PositiveFloat = Field(
        60.0, validation_alias="COGRAM_EXAMINE_SECONDS", description="the same, by the clock"
    )
    examine_queue_seconds: PositiveFloat = Field(
        30.0, validation_alias="COGRAM_EXAMINE_QUEUE_SECONDS", description="a request waits so long, then it is 503"
    )

    webhook_allow_private: bool = Field(
        False,
        validation_alias="COGRAM_WEBHOOK_ALLOW_PRIVATE",
        description="http and private addresses, to develop with",
    )
    webhook_refused_networks: tuple[IPvAnyNetwork, ...] = Field(
        (), validation_alias="COGRAM_WEBHOOK_REFUSED_NETWORKS", description="JSON list; never called, public or not"
    )
    webhook_ca_file: FilePath | None = Field(
        None, validation_alias="COGRAM_WEBHOOK_CA_FILE", description="further certificate authorities, in PEM"
    )
    webhook_connect_seconds: PositiveFloat = Field(5.0, validation_alias="COGRAM_WEBHOOK_CONNECT_SECONDS")
    webhook_seconds: PositiveFloat = Field(
        20.0,
        validation_alias="COGRAM_WEBHOOK_SECONDS",
        description="for one try, from the name's look-up to the answer",
    )
    webhook_delays: tuple[PositiveFloat, ...] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        validation_alias="COGRAM_WEBHOOK_DELAYS",
        description="JSON list; seconds before each further try",
    )
    webhook_most_failing_days: PositiveFloat = Field(
        5.0, validation_alias="COGRAM_WEBHOOK_MOST_FAILING_DAYS", description="then a webhook is disabled"
    )
    webhook_keep_days: PositiveFloat = Field(
        30.0, validation_alias="COGRAM_WEBHOOK_KEEP_DAYS", description="deliveries that have ended"
    )
    webhook_secret_overlap_seconds: float = Field(
        86400.0,
        ge=0,
        validation_alias="COGRAM_WEBHOOK_SECRET_OVERLAP_SECONDS",
        description="a replaced secret signs on",
    )
    webhooks_per_tenant: PositiveInt = Field(50, validation_alias="COGRAM_WEBHOOKS_PER_TENANT")

    metrics_port: int = Field(
        0, ge=0, le=65535, validation_alias="COGRAM_METRICS_PORT", description="of this process; 0: no metrics"
    )
    metrics_host: str = Field("127.0.0.1", validation_alias="COGRAM_METRICS_HOST")

    require_keys: bool = Field(
        False, validation_alias="COGRAM_REQUIRE_KEYS", description="on 127.0.0.1 they may be off"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), validation_alias="COGRAM_ALLOWED_HOSTS", description="names of this service, parted by commas"
    )
    key_cache_seconds: float = Field(
        3.0, ge=0, le=10, validation_alias="COGRAM_KEY_CACHE_SECONDS", description="a revoked key works no longer"
    )
    requests_per_second: PositiveFloat = Field(
        50.0, validation_alias="COGRAM_REQUESTS_PER_SECOND", description="of an account, where its key says nothing"
    )
    auth_failures_per_minute: PositiveInt = Field(
        30, validation_alias="COGRAM_AUTH_FAILURES_PER_MINUTE", description="wrong credentials from one address"
    )
    oidc_issuer: str | None = Field(None, validation_alias="COGRAM_OIDC_ISSUER", description="takes its tokens, too")
    oidc_audience: str | None = Field(
        None, validation_alias="COGRAM_OIDC_AUDIENCE", description="that tokens must name"
    )
    oidc_jwks_url: str | None = Field(None, validation_alias="COGRAM_OIDC_JWKS_URL", description="else discovered")
    oidc_tenant_claim: str = Field("tenant", validation_alias="COGRAM_OIDC_TENANT_CLAIM")
    oidc_scope_claim: str = Field("scope", validation_alias="COGRAM_OIDC_SCOPE_CLAIM")
    oidc_scope_prefix: str = Field("cogram:", validation_alias="COGRAM_OIDC_SCOPE_PREFIX", description="cogram:read …")
    oidc_leeway_seconds: int = Field(30, ge=0, le=300, validation_alias="COGRAM_OIDC_LEEWAY_SECONDS")
    quota_bytes: int | None = Field(
        None, ge=0, validation_alias="COGRAM_QUOTA_BYTES", description="stored by one account; none: no limit"
    )
    quota_fusions: int | None = Field(
        None, ge=0, validation_alias="COGRAM_QUOTA_FUSIONS", description="kept by one account"
    )
    quota_concurrent: int | None = Field(
        None, ge=0, validation_alias="COGRAM_QUOTA_CONCURRENT", description="fusions of one account that have not ended"
    )

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _parted(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @property
    def credentials_required(self) -> bool:
        """Whether every caller has to say who they are."""
        return self.require_keys or self.oidc_issuer is not None

    @cached_property
    def resolved_database_url(self) -> str:
        """``DATABASE_URL`` with the psycopg 3 driver, or SQLite in the data folder."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir.resolve() / 'cogram.sqlite3'}"
        for scheme in ("postgresql://", "postgres://"):
            if self.database_url.startswith(scheme):
                return "postgresql+psycopg://" + self.database_url.removeprefix(scheme)
        return self.database_url

    @cached_property
    def broker_socket(self) -> Path:
        """Where the embedded Valkey listens."""
        return self.data_dir.resolve() / "broker" / "valkey.sock"

    @cached_property
    def resolved_broker_url(self) -> str:
        """``BROKER_URL``, or the embedded Valkey's unix socket."""
        return self.broker_url or f"redis+socket://{self.broker_socket}"

    @property
    def blob_dir(self) -> Path:
        """Content-addressed files."""
        return self.data_dir.resolve() / "blobs"

    @property
    def incoming_dir(self) -> Path:
        """Blobs on their way in, until they are whole."""
        return self.blob_dir / "incoming"

    @property
    def uploads_dir(self) -> Path:
        """Bytes of resumable uploads under way; on the disk of the incoming blobs, as they become some."""
        return self.incoming_dir.with_name("uploads")

    @property
    def blob_cache_dir(self) -> Path:
        """Copies of blobs that lie at ``BLOB_URL``; on the same disk as the jobs' folders."""
        return self.data_dir.resolve() / "blob-cache"

    @property
    def cache_dir(self) -> Path:
        """What fusions have found out about checkpoints on data, for later ones; all workers on this disk share it."""
        return self.data_dir.resolve() / "cache"

    @property
    def work_dir(self) -> Path:
        """One folder a job, one below it an attempt."""
        return self.data_dir.resolve() / "work"
