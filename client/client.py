"""A small Python client of the REST API."""

import base64
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

_DOWNLOAD_TIMEOUT_S = 120  # of a model: a format may be made first, and others before it


class ApiError(Exception):
    """The server's problem answer: `status`, `code`, and the whole of it in `problem`."""

    def __init__(self, response: httpx2.Response) -> None:
        is_json = "json" in response.headers.get("content-type", "")
        self.problem: dict[str, Any] = response.json() if is_json else {"detail": response.text[:200]}
        self.status = response.status_code
        self.code = str(self.problem.get("code", "unknown"))
        super().__init__(f"{self.status} {self.code}: {self.problem.get('detail', '')}")


class Client:
    """Talks to one server. Use it in a `with` block."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 30, trust_env: bool = True) -> None:
        """`key`: where the server needs one. `trust_env`: whether a proxy named in the environment is used."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout_s = timeout_s
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=trust_env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def _call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        response = self._http.request(method, path, **options)
        if response.is_error:
            raise ApiError(response)
        return response

    def submit(self, **spec: Any) -> dict[str, Any]:
        """Create a job; returns it as it is at first."""
        job: dict[str, Any] = self._call("POST", "/jobs", json=spec).json()
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._call("GET", f"/jobs/{job_id}").json()
        return job

    def cancel(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._call("POST", f"/jobs/{job_id}/cancel").json()
        return job

    def pause(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self._call("POST", f"/jobs/{job_id}/pause").json()
        return job

    def resume(self, job_id: str, *, epochs: int | None = None) -> dict[str, Any]:
        """Go on with a paused, failed or cancelled job; with `epochs`, train one that has ended for so many more."""
        body = {"json": {"epochs": epochs}} if epochs else {}
        job: dict[str, Any] = self._call("POST", f"/jobs/{job_id}/resume", **body).json()
        return job

    def delete(self, job_id: str) -> None:
        self._call("DELETE", f"/jobs/{job_id}")

    def loss(self, job_id: str, *, after: str | None = None) -> dict[str, Any]:
        """One page of the loss history, behind the cursor `after`."""
        page: dict[str, Any] = self._call(
            "GET", f"/jobs/{job_id}/loss", params={"after": after} if after else None
        ).json()
        return page

    def follow(self, job_id: str, *, every_s: float = 0.1, limit_s: float = 3600) -> Iterator[list[dict[str, Any]]]:
        """New loss points as they come (perhaps none), until the job has ended. Raises TimeoutError after `limit_s`."""
        after, deadline = None, time.monotonic() + limit_s
        while time.monotonic() < deadline:
            page = self.loss(job_id, after=after)
            after = page["next"]
            yield page["points"]
            if page["terminal"] and not page["has_more"]:
                return
            time.sleep(every_s)
        raise TimeoutError(f"{job_id} did not end within {limit_s} s")

    def model(self, job_id: str, *, format: str = "pdparams") -> bytes:
        """The trained network, as `pdparams`, `safetensors`, `inference` or `onnx`. Waits up to 120 s: it may be made first."""
        timeout = httpx2.Timeout(self._timeout_s, read=max(self._timeout_s, _DOWNLOAD_TIMEOUT_S))
        return self._call("GET", f"/jobs/{job_id}/model", params={"format": format}, timeout=timeout).content

    def predict(self, images: Iterable[Any], *, debug: bool = False, **options: Any) -> dict[str, Any]:
        """What images show: paths of PNG or JPEG files, their bytes, or lists or arrays of numbers, 28x28 or 784.

        With `debug` each prediction has `seen`, the 28x28 that the network saw.
        """
        body = {"images": [_as_json(image) for image in images], **options}
        query = {"params": {"debug": "true"}} if debug else {}
        answer: dict[str, Any] = self._call("POST", "/predict", json=body, **query).json()
        return answer

    def models(self, **query: Any) -> dict[str, Any]:
        """A page of the models, and all names that models go by."""
        page: dict[str, Any] = self._call("GET", "/models", params=query).json()
        return page

    def name_model(self, alias: str, job_id: str) -> dict[str, Any]:
        """Have an alias name a job's model; returns that model."""
        model: dict[str, Any] = self._call("PUT", f"/models/{alias}", json={"job_id": job_id}).json()
        return model

    def unname_model(self, alias: str) -> None:
        self._call("DELETE", f"/models/{alias}")


def _as_json(image: Any) -> Any:
    """A picture as base64, an array as lists."""
    if isinstance(image, Path):
        image = image.read_bytes()
    if isinstance(image, bytes):
        return base64.b64encode(image).decode("ascii")
    return image.tolist() if hasattr(image, "tolist") else image
