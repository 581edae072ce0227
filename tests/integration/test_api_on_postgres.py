"""Every test of the API that touches rows, on PostgreSQL."""

# ruff: noqa: F401
from tests.app.api.test_idempotency import TestIdempotencyKey
from tests.app.artifacts.test_endpoints import TestDownload, TestListArtifacts
from tests.app.artifacts.test_endpoints import url as url
from tests.app.datasets.test_endpoints import TestCreateDataset, TestDeleteDataset, TestReadDataset
from tests.app.health.test_endpoints import TestHealth
from tests.app.jobs.test_compress import TestCompress
from tests.app.jobs.test_endpoints import (
    TestCancelJob,
    TestCreateJob,
    TestDeleteJob,
    TestListJobs,
    TestMetrics,
    TestReadJob,
)
from tests.app.jobs.test_event_stream import TestAsJson, TestFollowJob
from tests.app.models.test_endpoints import (
    TestCreateModel,
    TestDeleteModel,
    TestFromArtifact,
    TestReadModels,
    TestUploadModel,
)
from tests.app.storage.test_garbage import TestCollectGarbage
