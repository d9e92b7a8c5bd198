"""Where the parts of a stage are computed, by `machine` of the settings; see `tasks.fan_out`.

machine.processes alone     that many processes of this machine
machine.work_pool           a Prefect flow run for each part, by whichever workers serve the pool
machine.task_runner         a Prefect task for each part, by the cluster of any task runner: Ray, Dask
"""

from __future__ import annotations

import logging
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from flows.prefect_adapter import run_id
from pruning.errors import WorkspaceError
from tasks.config.import_strings import resolve
from tasks.config.schema import Settings, TaskRunner
from tasks.environment import REPOSITORY, is_installed
from tasks.fan_out import FanOut, Poll
from tasks.part_worker import children, in_child

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_ASK_EVERY_S = 1.0
_PATIENCE_S = 10.0
_FLOW = "part"

log = logging.getLogger("secateur")


@contextmanager
def fan_out(settings: Settings) -> Iterator[FanOut | None]:
    """Yield where parts are computed: None if in this process, one after the other. A cluster is asked when it is used.

    What still runs when the block is left is ended.
    """
    machine = settings.machine
    if machine.processes == 1:
        yield None
        return
    with ExitStack() as stack:
        if machine.work_pool is not None:
            yield _WorkPool(machine.work_pool, stack)
        elif machine.task_runner is not None:
            yield _Cluster(machine.task_runner, stack)
        else:
            yield _Processes(machine.processes, stack)


def _state_of(future: Future[str]) -> Poll:
    """Say how a call in a thread stands."""

    def poll() -> str | None:
        if not future.done():
            return None
        fault = future.exception()
        return future.result() if fault is None else f"{type(fault).__name__}: {fault}"

    return poll


class _Workers(ABC):
    """Workers that compute in processes which they keep; they begin with the first part."""

    loads_once = True

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._submit: Callable[[str], Poll] | None = None

    def submit(self, request: Path) -> Poll:
        if self._submit is None:
            self._submit = self._begin()
        return self._submit(str(request))

    @abstractmethod
    def _begin(self) -> Callable[[str], Poll]:
        """Start them, until the stack is left, and return what submits the path of a request."""


class _Processes(_Workers):
    """Processes of this machine; as tasks of the flow's run, if there is one."""

    def __init__(self, processes: int, stack: ExitStack) -> None:
        super().__init__(stack)
        self._processes = processes

    def _begin(self) -> Callable[[str], Poll]:
        if run_id() is not None:
            from prefect.task_runners import ThreadPoolTaskRunner

            runner: Any = self._stack.enter_context(ThreadPoolTaskRunner(max_workers=self._processes))
            self._stack.enter_context(children())
            return _tasks_of(runner)
        pool = ThreadPoolExecutor(self._processes)
        self._stack.callback(pool.shutdown, cancel_futures=True)
        self._stack.enter_context(children())  # they end first: threads wait for them
        return lambda request: _state_of(pool.submit(in_child, request))


def _tasks_of(runner: Any) -> Callable[[str], Poll]:
    """Return what submits a request to a task runner that has begun."""
    import prefect
    from prefect.cache_policies import NO_CACHE

    def submit(request: str) -> Poll:
        name = Path(request).stem
        task = prefect.task(name="part", task_run_name=name, cache_policy=NO_CACHE, persist_result=False)(in_child)
        future = runner.submit(task, {"request": request})
        asked = monotonic()

        def poll() -> str | None:
            nonlocal asked
            if monotonic() - asked < _ASK_EVERY_S:
                return None
            asked = monotonic()
            try:
                return str(future.result(timeout=0.01))
            except TimeoutError:
                return None
            except BaseException as fault:  # noqa: BLE001 - Prefect's "crashed" is no Exception
                return f"{type(fault).__name__}: {fault}"

        return poll

    return submit


class _Cluster(_Workers):
    """The cluster of a Prefect task runner. Each of its workers computes in a process of its own."""

    def __init__(self, chosen: TaskRunner, stack: ExitStack) -> None:
        super().__init__(stack)
        self._chosen = chosen

    def _begin(self) -> Callable[[str], Poll]:
        from flows.offline import reach_server

        chosen = self._chosen
        reach_server("machine.task_runner")
        factory = resolve(chosen.factory)
        what = f"machine.task_runner: {chosen.factory} with {chosen.arguments or 'no arguments'}"
        try:
            _knock(chosen.arguments.get("address"))
            runner = self._stack.enter_context(factory(**chosen.arguments))
            getattr(runner, "client", None)  # Dask's connects when it is first asked for
        except (Exception, SystemExit) as fault:
            raise WorkspaceError(
                f"{what} can't be used ({type(fault).__name__}: {str(fault).strip() or 'no message'}); start the "
                "cluster or correct the arguments, or remove machine.task_runner to compute on this machine"
            ) from fault
        return _tasks_of(runner)


def _knock(address: Any) -> None:
    """Connect to where a cluster should be and hang up: Ray's own attempts go on for many minutes.

    Raises:
        OSError: Nobody answers there.
    """
    found = re.fullmatch(r"(?:[a-z]+://)?\[?([^/\[\]]+?)\]?:(\d+)", address) if isinstance(address, str) else None
    if found is not None:
        socket.create_connection((found[1], int(found[2])), _PATIENCE_S).close()


class _WorkPool:
    """A Prefect work pool: a flow run for each part."""

    loads_once = False

    def __init__(self, pool: str, stack: ExitStack) -> None:
        self._pool, self._stack = pool, stack
        self._begun: tuple[SyncPrefectClient, Any] | None = None
        self._running: dict[Any, Path] = {}

    def submit(self, request: Path) -> Poll:
        if self._begun is None:
            self._begun = self._begin()
        client, deployment = self._begun
        run = client.create_flow_run_from_deployment(
            deployment, parameters={"request": str(request)}, name=f"{request.stem} of {request.parent.name}"
        )
        self._running[run.id] = request
        asked, state = monotonic(), run.state

        def poll() -> str | None:
            nonlocal asked, state
            import httpx

            if monotonic() - asked > _ASK_EVERY_S:
                asked = monotonic()
                try:
                    state = client.read_flow_run(run.id).state
                except httpx.HTTPError as fault:  # the files come without the server
                    log.debug("Prefect's server doesn't say how %s stands: %s", request.stem, fault)
            if state is None or not state.is_final():
                return None
            self._running.pop(run.id, None)
            return "" if state.is_completed() else f"its flow run is {state.name}: {state.message or 'no message'}"

        return poll

    def _begin(self) -> tuple[SyncPrefectClient, Any]:
        """Find the pool and who serves it, and deploy the flow of a part to it."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.objects import WorkerStatus
        from prefect.exceptions import ObjectNotFound

        from flows.offline import reach_server

        reach_server("machine.work_pool", lasting=True)
        what = f"machine.work_pool: the work pool {self._pool!r}"
        client = self._stack.enter_context(get_client(sync_client=True))
        try:
            pool = client.read_work_pool(self._pool)
        except ObjectNotFound:
            raise WorkspaceError(
                f"{what} isn't known to Prefect's server {client.api_url}; make it by `prefect work-pool create "
                f"{self._pool} --type process`, and serve it by `prefect worker start --pool {self._pool}`"
            ) from None
        if not (pool.is_push_pool or pool.is_managed_pool):
            workers = client.read_workers_for_work_pool(self._pool)
            if all(worker.status != WorkerStatus.ONLINE for worker in workers):
                raise WorkspaceError(
                    f"{what} has no worker at work; start one by `prefect worker start --pool {self._pool}`, on a "
                    "machine that sees this folder under the same path"
                )
        flow = client.create_flow_from_name(_FLOW)
        here = str(Path.cwd())
        known = {"PYTHONPATH": str(REPOSITORY)} if not is_installed() else {}
        takes = (pool.base_job_template.get("variables") or {}).get("properties") or {}
        deployment = client.create_deployment(
            flow_id=flow,
            name=f"{_FLOW}-{self._pool}",
            entrypoint="flows.part.part",
            work_pool_name=self._pool,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": here}}],
            job_variables={"env": known} if known and "env" in takes else {},
            enforce_parameter_schema=False,
        )
        self._stack.callback(self._cancel, client)
        return client, deployment

    def _cancel(self, client: SyncPrefectClient) -> None:
        """Cancel the flow runs that nobody waits for any more."""
        import httpx
        from prefect.states import Cancelling

        for run in self._running:
            try:
                client.set_flow_run_state(run, Cancelling(message="Nobody waits for this part any more."))
            except httpx.HTTPError as fault:
                log.debug("a flow run of a part couldn't be cancelled: %s", fault)
