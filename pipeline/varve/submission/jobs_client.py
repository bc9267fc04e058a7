"""The head of a Ray cluster, over its Jobs API: submissions of a job, their output, how they end.

Knows nothing of what a job does. A submission's id is made of the job's own content and a running number, so the same
job is found again by anyone, and two who submit it at once get one run.
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
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from varve.config.job import Job
from varve.errors import RunError, first_line, one_line
from varve.submission.address import authority, checked, headers
from varve.submission.package import job_code

# A head that restarts or a network that breaks for a moment must not lose the one who follows.
_GONE_S = 60.0
_LOOK_EVERY_S = 1.0
# Tells the driver that its log is followed.
FOLLOWED = {"VARVE_FOLLOWED": "1"}


@dataclass(frozen=True, slots=True)
class Submission:
    """One run of a job on a cluster, as its head tells it."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    message: str
    exit_code: int | None  # of the driver, once it has ended

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return JobStatus(self.status).is_terminal()


def name_of(job: Job) -> str:
    """What the ids of a job's submissions begin with: the hash of all that decides its output, and of where that is."""
    content = json.dumps([job.identity(), job.output.path, [code.sha256 for code in job_code(job)]], sort_keys=True)
    return f"varve-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


class Head:
    """A connection to a cluster's head."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: http://HOST:PORT or https://HOST:PORT of the head's dashboard.

        Raises:
            JobError: the address has another form, or the certificates named for it are not there.
            RunError: nobody answers there, or not as Ray's head does, or the token is refused.
        """
        self.address = checked(address)
        for module in (
            "dashboard.modules.job.sdk",
            "dashboard.modules.dashboard_sdk",
            "_private.runtime_env.packaging",
        ):
            logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
        with self._told():
            self._client = JobSubmissionClient(self.address, headers=headers(), verify=authority())
            self._client.get_version()

    def latest(self, name: str) -> tuple[Submission | None, int]:
        """(the last submission whose id begins with a name, how many there were).

        Raises:
            RunError: the head does not answer.
        """
        last, count = None, 0
        while (found := self.find(f"{name}-{count + 1}")) is not None:
            last, count = found, count + 1
        return last, count

    def find(self, submission_id: str) -> Submission | None:
        """The submission of that id; None if there is none.

        Raises:
            RunError: the head does not answer.
        """
        with self._told():
            try:
                details = self._client.get_job_info(submission_id)
            except RuntimeError as e:
                if "status code 404" in str(e) and "does not exist" in str(e):  # a proxy before the head says 404 too
                    return None
                raise
        return _submission(submission_id, details)

    def submit(self, submission_id: str, folder: Path, command: list[str]) -> None:
        """Have the head run a command of the packed folder, unless somebody was faster under that id.

        Raises:
            RunError: the head refuses.
        """
        with self._told():
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
        """The driver's output as it comes, from its first line on, until it ends.

        Raises:
            RunError: the head has not answered for a minute, and the run may go on; or it knows of no such run.
        """
        seen, gone_since = 0, None
        while True:
            begun = seen
            try:
                for text, end in self._tail(submission_id, seen):
                    seen, gone_since = end, None
                    yield text
                if (found := self.find(submission_id)) is not None and found.is_over:
                    return
            except (RuntimeError, OSError, aiohttp.ClientError, RunError) as e:
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > _GONE_S:
                    raise RunError(self._is_gone(submission_id)) from e
            if self._has_forgotten(submission_id):
                raise RunError(self._is_anew(submission_id))
            if seen == begun:
                time.sleep(_LOOK_EVERY_S)

    def logs(self, submission_id: str) -> str:
        """All that the driver has put out so far.

        Raises:
            RunError: the head does not answer.
        """
        with self._told():
            return self._client.get_job_logs(submission_id)

    def _has_forgotten(self, submission_id: str) -> bool:
        """Whether the head answers, and has no such submission: one that is away has forgotten nothing."""
        try:
            return self.find(submission_id) is None
        except RunError:
            return False

    def _tail(self, submission_id: str, skip: int) -> Iterator[tuple[str, int]]:
        """(text, characters up to its end) beyond the first `skip` characters.

        A thread listens, and Ctrl-C finds the main one waiting for nothing but it.
        """
        heard: Queue[str | BaseException | None] = Queue()
        Thread(target=self._listen, args=(submission_id, heard.put), daemon=True).start()
        end = 0
        while (chunk := heard.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            before, end = end, end + len(chunk)
            if end > skip:
                yield chunk[max(0, skip - before) :], end

    def _listen(self, submission_id: str, tell: Callable[[str | BaseException | None], None]) -> None:
        """Reporter every chunk of the output, and at last None, or what went wrong."""

        async def listen() -> None:
            async for chunk in self._client.tail_job_logs(submission_id):
                tell(chunk)

        try:
            asyncio.run(listen())
        except Exception as e:  # noqa: BLE001 (raised where it is heard)
            tell(e)
        else:
            tell(None)

    def _is_gone(self, submission_id: str) -> str:
        return (
            f"{self.address} has not answered for {_GONE_S:.0f} s. The run {submission_id} may go on without it: "
            "the same command attaches again, `varve status` reads the output"
        )

    def _is_anew(self, submission_id: str) -> str:
        return (
            f"{self.address} knows nothing of {submission_id} any more: the cluster was started anew. What was "
            "committed stays; submit again to go on"
        )

    def _not_reached(self, error: BaseException) -> str:
        # Ray's own error says that it failed, and not why.
        cause = error if isinstance(error, requests.exceptions.RequestException) else error.__context__ or error
        if isinstance(cause, requests.exceptions.SSLError):
            return (
                f"{self.address}: the certificate is not trusted: {_last(cause)}. Set REQUESTS_CA_BUNDLE to the "
                "certificate of its authority"
            )
        return f"{self.address}: no head of a Ray cluster answers there: {_last(cause)}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the Jobs API in one message."""
        try:
            yield
        except AuthenticationError as e:
            told = first_line(e)
            msg = (
                f"{self.address}: {told}. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file, to the token that the "
                "cluster was started with"
            )
            raise RunError(msg) from e
        except (requests.exceptions.RequestException, ConnectionError) as e:
            raise RunError(self._not_reached(e)) from e
        except (RuntimeError, KeyError, ValueError) as e:
            msg = f"{self.address}: the head refuses: {one_line(e)}"
            raise RunError(msg) from e


def _submission(submission_id: str, details: JobDetails) -> Submission:
    return Submission(submission_id, str(details.status.value), details.message or "", details.driver_exit_code)


def _last(error: BaseException) -> str:
    return one_line(error, None)[-200:]
