"""What models make of the test images of their data sets: computed once for each model, one model at a time."""

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from api.predicting import Predicting
from api.turns import turn
from core.errors import ArtifactCorrupt, DatasetUnavailable, Unavailable
from core.jobs.store import JobStore, StoredModel
from core.settings import Settings

if TYPE_CHECKING:  # NumPy is imported when somebody asks
    from core.training.datasets import Split
    from core.training.evaluation import Evaluation
    from core.training.predictor import Predictor

KEPT = 32  # evaluations, 60 KB each
_ASK_AGAIN_S = 60  # for test images that somebody has to fetch

log = logging.getLogger(__name__)


class Evaluating:
    """The evaluations of one API process, kept by the digest of the weights; test images are read once and kept."""

    def __init__(self, settings: Settings, predicting: Predicting) -> None:
        self._settings, self._predicting = settings, predicting
        self._known: OrderedDict[tuple[str, str], Evaluation] = OrderedDict()
        self._tests: dict[str, Split] = {}
        self._working = CapacityLimiter(1)

    async def of(self, store: JobStore, stored: StoredModel) -> tuple[StoredModel, "Split", "Evaluation"]:
        """A job's model, the test images, and what it makes of them.

        A job that is trained further meanwhile is no damage: then its model is another one. Raises NotFound, ModelDeleted,
        ModelNotReady, ModelUnsupported, ArtifactCorrupt, and Unavailable when the data set is not here: nothing is fetched.
        """
        try:
            found = await self._evaluation(stored)
        except ArtifactCorrupt:
            now = await store.model(stored.job_id)
            if now == stored:
                raise
            stored, found = now, await self._evaluation(now)
        return stored, self._tests[stored.dataset], found

    async def _evaluation(self, stored: StoredModel) -> "Evaluation":
        key = (stored.dataset, stored.files["safetensors"]["sha256"])
        if key not in self._known:
            async with turn(self._working, "other models are being evaluated"):
                if key not in self._known:  # who waited with us may want the same
                    predictor = await self._predicting.load(stored)
                    self._known[key] = await to_thread.run_sync(self._evaluate, predictor, stored.dataset)
        found = self._known[key]
        self._known.move_to_end(key)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found

    def _evaluate(self, predictor: "Predictor", dataset: str) -> "Evaluation":
        from core.training.evaluation import evaluate

        return evaluate(predictor, self._test_images(dataset))

    def _test_images(self, dataset: str) -> "Split":
        from core.training import datasets

        if dataset not in self._tests:
            try:
                self._tests[dataset] = datasets.load_test(
                    dataset,
                    cache=self._settings.cache_dir,
                    folder=self._settings.datasets,
                    mirror=self._settings.data_mirror,
                )
            except DatasetUnavailable as error:
                log.warning("no test images", extra={"dataset": dataset, "reason": str(error)})
                raise Unavailable(
                    f"the test images of {dataset} are not on this machine, or damaged: run `descent data fetch {dataset}`, "
                    "or train a job with them, which fetches them",
                    retry_after_s=_ASK_AGAIN_S,
                ) from error
        return self._tests[dataset]
