"""Client of a Ray cluster's Jobs API: a job's submissions, their output, and how they ended.

Knows nothing of what a job does. A submission's id is a hash of the job's content and a running number. So anyone can
find the submissions of a job, and the same job, submitted twice at the same time, runs once.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from varve.config.job import Job
from varve.errors import RunError, first_line, one_line
from varve.submission.address import ca_bundle, check_address, proxy_headers
from varve.submission.package import job_code

# A restart of the head or a short network failure must not end the stream of output.
_MAX_SILENCE_S = 60.0
_POLL_S = 1.0
# Lets the driver mark its progress lines, so that `varve submit` can update its own line.
FOLLOWED = {"VARVE_FOLLOWED": "1"}


@dataclass(frozen=True, slots=True)
class Submission:
    """The state of one run of a job on a cluster."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    message: str
    exit_code: int | None  # of the driver; None until it has ended

    @property
    def is_over(self) -> bool:
        """Whether it succeeded, failed or was stopped."""
        return JobStatus(self.status).is_terminal()


def submission_name(job: Job) -> str:
    """The prefix of the ids of a job's submissions: a hash of everything that determines its output and its path."""
    content = json.dumps([job.identity(), job.output.address, [code.sha256 for code in job_code(job)]], sort_keys=True)
    return f"varve-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


class ClusterHead:
    """A connection to a cluster's head."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: http://HOST:PORT or https://HOST:PORT of the head's dashboard.

        Raises:
            JobError: the address has another form, or the CA bundle does not exist.
            RunError: no Ray head answers there, or it rejects the token.
        """
        self.address = check_address(address)
        for module in (
            "dashboard.modules.job.sdk",
            "dashboard.modules.dashboard_sdk",
            "_private.runtime_env.packaging",
        ):
            logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
        with self._as_run_errors():
            self._client = JobSubmissionClient(self.address, headers=proxy_headers(), verify=ca_bundle())
            self._client.get_version()

    def latest(self, name: str) -> tuple[Submission | None, int]:
        """(last submission whose id begins with a name, number of such submissions).

        Raises:
            RunError: the head does not answer.
        """
        last, count = None, 0
        while (submission := self.find(f"{name}-{count + 1}")) is not None:
            last, count = submission, count + 1
        return last, count

    def find(self, submission_id: str) -> Submission | None:
        """The submission with an id; None if there is none.

        Raises:
            RunError: the head does not answer.
        """
        with self._as_run_errors():
            try:
                details = self._client.get_job_info(submission_id)
            except RuntimeError as e:
                if "status code 404" in str(e) and "does not exist" in str(e):  # a proxy may answer 404 too
                    return None
                raise
        return Submission(submission_id, str(details.status.value), details.message or "", details.driver_exit_code)

    def submit(self, submission_id: str, folder: Path, command: list[str]) -> None:
        """Run a command in a packed folder on the cluster. Does nothing if the id was submitted at the same time.

        Raises:
            RunError: the head rejects the submission.
        """
        with self._as_run_errors():
            try:
                self._client.submit_job(
                    entrypoint=" ".join(["python", *command]),
                    submission_id=submission_id,
                    runtime_env={"working_dir": str(folder), "env_vars": FOLLOWED},
                )
            except RuntimeError:
                if self.find(submission_id) is None:
                    raise

    def follow(self, submission_id: str) -> Iterator[str]:
        """Yield the driver's output from its first line until it ends.

        Raises:
            RunError: the head has not answered for a minute, or it does not know the submission.
        """
        num_seen, silent_since = 0, None
        while True:
            num_before = num_seen
            try:
                for text, end in self._tail(submission_id, num_seen):
                    num_seen, silent_since = end, None
                    yield text
                if (submission := self.find(submission_id)) is not None and submission.is_over:
                    return
            except (RuntimeError, OSError, aiohttp.ClientError, RunError) as e:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _MAX_SILENCE_S:
                    msg = (
                        f"{self.address} has not answered for {_MAX_SILENCE_S:.0f} s. The run {submission_id} may "
                        "continue: the same command attaches to it again, `varve status` reads the output"
                    )
                    raise RunError(msg) from e
            if self._is_unknown(submission_id):
                msg = (
                    f"{self.address} does not know {submission_id}: the cluster was restarted. Committed parts stay; "
                    "submit again to resume"
                )
                raise RunError(msg)
            if num_seen == num_before:
                time.sleep(_POLL_S)

    def logs(self, submission_id: str) -> str:
        """The driver's output so far.

        Raises:
            RunError: the head does not answer.
        """
        with self._as_run_errors():
            return self._client.get_job_logs(submission_id)

    def _is_unknown(self, submission_id: str) -> bool:
        """Whether the head answers that it has no such submission."""
        try:
            return self.find(submission_id) is None
        except RunError:
            return False

    def _tail(self, submission_id: str, skip: int) -> Iterator[tuple[str, int]]:
        """(text, its end in characters) after the first `skip` characters of the output.

        A thread runs the event loop, so that Ctrl-C interrupts the main thread at once.
        """
        chunks: Queue[str | BaseException | None] = Queue()
        Thread(target=self._stream, args=(submission_id, chunks.put), daemon=True).start()
        end = 0
        while (chunk := chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            start, end = end, end + len(chunk)
            if end > skip:
                yield chunk[max(0, skip - start) :], end

    def _stream(self, submission_id: str, put: Callable[[str | BaseException | None], None]) -> None:
        """Put every chunk of the output, then None at its end, or the exception."""

        async def stream() -> None:
            async for chunk in self._client.tail_job_logs(submission_id):
                put(chunk)

        try:
            asyncio.run(stream())
        except Exception as e:  # noqa: BLE001 (raised in the thread that reads the queue)
            put(e)
        else:
            put(None)

    @contextmanager
    def _as_run_errors(self) -> Iterator[None]:
        """Convert errors of the Jobs API to RunErrors of one line."""
        try:
            yield
        except AuthenticationError as e:
            msg = (
                f"{self.address}: {first_line(e)}. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file, to the token "
                "that the cluster was started with"
            )
            raise RunError(msg) from e
        except (requests.exceptions.RequestException, ConnectionError) as e:
            # Ray's own exception does not contain the reason.
            cause = e if isinstance(e, requests.exceptions.RequestException) else e.__context__ or e
            reason = one_line(cause, None)[-200:]
            if isinstance(cause, requests.exceptions.SSLError):
                msg = (
                    f"{self.address}: the certificate is not trusted: {reason}. Set REQUESTS_CA_BUNDLE to the "
                    "certificate of its authority"
                )
            else:
                msg = f"{self.address}: no head of a Ray cluster answers there: {reason}"
            raise RunError(msg) from e
        except (TypeError, AttributeError) as e:  # Ray's client makes objects of whatever fields an answer has
            msg = f"{self.address}: no head of a Ray cluster gives such an answer: {one_line(e)}"
            raise RunError(msg) from e
        except (RuntimeError, KeyError, ValueError) as e:
            msg = f"{self.address}: the head rejects the request: {one_line(e)}"
            raise RunError(msg) from e
