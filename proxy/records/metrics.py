"""`/metrics`: what the proxy counts, in Prometheus' text format, all workers added up.

The counters are doubles in memory that the workers share: a slab for each. A worker writes into its own alone, so nothing is
locked between processes; whoever is asked adds the slabs up. A slab outlives its worker: the one that takes its place goes on
with the same counters. A series is a family and its labels, which come from the configuration, never from a client.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from proxy.call import Call
from proxy.config import Config
from proxy.gates.cerbere import Gate
from proxy.logs import usage_in

if TYPE_CHECKING:
    from proxy.generation import Generation
    from proxy.pages import Visit
    from proxy.relay import Relay

CELLS, NAMES = 16 * 1024, 1024 * 1024  # doubles, and bytes of names, of one slab; what is never touched takes no memory
SLAB = CELLS * 8 + NAMES
USED, LOST = 0, 1  # cells: bytes of names that are used; series that found no room
FIRST = 2  # cell of the first series
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"  # a model that the configuration does not name


class Family(NamedTuple):
    """A metric: `buckets` (upper bounds, in its unit) make it a histogram."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Cells of one series: a histogram has one for each bucket, one for +Inf, and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1


SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PREFIX = "mooltiproxy_"
FAMILIES: Mapping[str, Family] = {
    "requests_total": Family("counter", "Calls that have ended.", ("front", "target", "status", "error_source")),
    "key_requests_total": Family("counter", "Calls that have ended, by the key that they came with.", ("key", "status")),
    "request_seconds": Family("histogram", "From a request's header to its reply's last byte.", ("target",), SECONDS),
    "first_byte_seconds": Family("histogram", "From a request's header to its reply's first byte.", ("target",), SECONDS),
    "tokens_total": Family(
        "counter", "Tokens that backends told of; cached are among the input.", ("key", "target", "model", "kind")
    ),
    "cost_usd_total": Family("counter", "What calls cost by `prices`, in US dollars.", ("key", "target", "model")),
    "in_flight": Family("gauge", "Calls that have begun and not ended."),
    "queued": Family("gauge", "Calls that wait for a place at a target.", ("target",)),
    "cache_total": Family("counter", "Calls to targets with a cache: hit, miss, or off.", ("target", "result")),
    "failed_attempts_total": Family("counter", "Attempts after which a call went on or gave up.", ("target", "cause")),
    "lossy_calls_total": Family("counter", "Calls whose translation lost something.", ("target",)),
    "bans_total": Family("counter", "Bans after wrong keys."),
    "records_dropped_total": Family("counter", "Calls that a record should have kept and did not.", ("record",)),
    "series_dropped_total": Family("counter", "Series that found no room: their numbers are missing here."),
    "target_resting": Family("gauge", "1 while a target rests after failures.", ("target",)),
    "upstream_key_resting": Family("gauge", "1 while one of a target's `envkeys` rests.", ("target", "key")),
}
CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
Series = tuple[str, ...]  # a family's name and the values of its labels


class Slab:
    """One worker's cells. Names are only ever appended, and a name counts once USED says so."""

    def __init__(self, memory: memoryview) -> None:
        self.cells = memory[: CELLS * 8].cast("d")
        self._names = memory[CELLS * 8 :]
        self._places = dict(self.series())
        self._next = max((place + FAMILIES[series[0]].width for series, place in self._places.items()), default=FIRST)

    def series(self) -> Iterator[tuple[Series, int]]:
        """Every series, and its first cell."""
        place = FIRST
        for line in bytes(self._names[: int(self.cells[USED])]).splitlines():
            series = tuple(json.loads(line))
            yield series, place
            place += FAMILIES[series[0]].width

    def place(self, *series: str) -> int:
        """The first cell of a series, made if it is new; LOST where there is no room for it."""
        found = self._places.get(series)
        return self._made(series) if found is None else found

    def _made(self, series: Series) -> int:
        used, line = int(self.cells[USED]), json.dumps(series).encode() + b"\n"
        width = FAMILIES[series[0]].width
        if self._next + width > CELLS or used + len(line) > NAMES:
            return LOST
        self._names[used : used + len(line)] = line
        self.cells[USED] = used + len(line)
        place = self._places[series] = self._next
        self._next += width
        return place

    def observe(self, family: str, label: str, value: float) -> None:
        """One value of a histogram."""
        place, buckets = self.place(family, label), FAMILIES[family].buckets
        self.cells[place if place == LOST else place + bisect_left(buckets, value)] += 1
        if place != LOST:
            self.cells[place + len(buckets) + 1] += value

    def zero(self) -> None:
        """The worker that had it is gone: none of its calls is in flight."""
        for series, place in self.series():
            if FAMILIES[series[0]].kind == "gauge":
                self.cells[place] = 0.0


class Sheet:
    """The slabs of all workers, made before they fork."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._file = tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else open(os.memfd_create("metrics"), "r+b")  # noqa: SIM115
        self._file.truncate(SLAB * slots)
        self._memory = memoryview(mmap.mmap(self._file.fileno(), SLAB * slots))
        self._own: Slab | None = None
        self.lock = threading.Lock()  # guards this process's slab

    def own(self) -> Slab:
        """This process's slab. Whose it is says a lock on the file's byte of that number, which ends with the process."""
        if self._own is None:
            number = 0 if self._slots == 1 else self._free()
            self._own = Slab(self._memory[number * SLAB : (number + 1) * SLAB])
            self._own.zero()
        return self._own

    def _free(self) -> int:
        import fcntl

        for number in range(self._slots):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:  # another worker's
                continue
            return number
        raise RuntimeError("there are more workers than slabs")

    def sums(self) -> dict[Series, list[float]]:
        """The cells of every series, all workers added up."""
        out: dict[Series, list[float]] = {}
        for number in range(self._slots):
            slab = Slab(self._memory[number * SLAB : (number + 1) * SLAB])
            for series, place in slab.series():
                cells = slab.cells[place : place + FAMILIES[series[0]].width]
                out[series] = [have + more for have, more in zip(out.get(series, [0.0] * len(cells)), cells, strict=True)]
            lost = out.setdefault(("series_dropped_total",), [0.0])
            lost[0] += slab.cells[LOST]
        return out


_sheets: list[Sheet] = []  # the process's one, once a configuration wants it


def sheet(slots: int) -> Sheet:
    """The process's sheet, which outlives generations. How many workers there are takes a restart to change, whatever a later
    configuration says."""
    if not _sheets:
        _sheets.append(Sheet(slots))
    return _sheets[0]


class Metrics:
    """`records.metrics`."""

    def __init__(self, config: Config) -> None:
        self._sheet = sheet(config.system.workers)
        self._lock = self._sheet.lock
        self._names = {"", *config.targets, *config.pools}
        named = [*(rule.pattern for rule in config.models), *(rule.model for rule in config.models), *config.prices]
        self._models = {
            name for name in (*named, *(target.model for target in config.targets.values())) if name and "*" not in name
        }
        self._running: dict[str, Relay] = {}  # by call; each is put in and taken out by its own thread
        self._dropped: defaultdict[str, int] = defaultdict(int)  # as far as it is counted
        self._bans = Gate.bans

    def begin(self, relay: Relay) -> None:
        """A call begins."""
        self._running[relay.call.id] = relay
        if relay.call.waits is not None:
            relay.call.waits.queued = self._queued
        self._add(1.0, "in_flight")

    def _queued(self, target: str, by: int) -> None:
        self._add(by, "queued", target)

    def _add(self, by: float, *series: str) -> None:
        with self._lock:
            slab = self._sheet.own()
            slab.cells[slab.place(*series)] += by

    def end(self, call: Call) -> None:
        """A call has ended. One that never began counts if it was refused; pages and preflights do not."""
        relay = self._running.pop(call.id, None)
        if relay is None and call.error is None:
            return
        told = (
            usage_in(relay.reply.tail)
            if relay is not None and call.tokens_in is None and call.tokens_out is None
            else (None, None)
        )
        with self._lock:
            slab = self._sheet.own()
            cells, place = slab.cells, slab.place
            target = call.target if call.target in self._names else ""
            key, status = call.key_name or "", CLASSES[call.status // 100] if call.status < 600 else OTHER
            if relay is not None:
                cells[place("in_flight")] -= 1
                slab.observe("request_seconds", target or "", call.elapsed_s())
                if call.first_byte_s is not None:
                    slab.observe("first_byte_seconds", target or "", call.first_byte_s)
            cells[place("requests_total", call.front, target or "", status, call.error_source or "")] += 1
            cells[place("key_requests_total", key, status)] += 1
            self._count_tokens(slab, call, key, target or "", told)
            if call.cache or call.attempts or call.lost:
                _count_way(slab, call, target or "")
            if Gate.bans != self._bans:
                cells[place("bans_total")] += Gate.bans - self._bans
                self._bans = Gate.bans
            if relay is not None and relay.generation.records is not None:
                self._count_dropped(slab, relay.generation.records.dropped())

    def _count_tokens(self, slab: Slab, call: Call, key: str, target: str, told: tuple[int | None, int | None]) -> None:
        model = call.model_served or call.model_asked or ""
        model = model if model in self._models or not model else OTHER
        counts = (("input", call.tokens_in or told[0]), ("cached", call.tokens_cached), ("output", call.tokens_out or told[1]))
        for kind, count in counts:
            if count:
                slab.cells[slab.place("tokens_total", key, target, model, kind)] += count
        if call.cost:
            slab.cells[slab.place("cost_usd_total", key, target, model)] += call.cost

    def _count_dropped(self, slab: Slab, dropped: Mapping[str, int]) -> None:
        for record, count in dropped.items():
            if count > self._dropped[record]:
                slab.cells[slab.place("records_dropped_total", record)] += count - self._dropped[record]
                self._dropped[record] = count

    def close(self) -> None:
        """The counters outlive the generation."""

    def text(self, generation: Generation, viewer: str | None = None) -> str:
        """The exposition. Who is not the master key (`viewer`: their key's name) sees no other key's series."""
        with self._lock:
            slab = self._sheet.own()
            for name in ("in_flight", "bans_total"):
                slab.place(name)
            if generation.records is not None:
                self._count_dropped(slab, generation.records.dropped())
        sums = self._sheet.sums()
        sums.update({series: [float(rests)] for series, rests in _resting(generation)})
        theirs = {series: cells for series, cells in sums.items() if viewer in (None, _key_of(series) or viewer)}
        return "".join(line + "\n" for line in _lines(theirs))


def _key_of(series: Series) -> str:
    """Whose series it is; empty: everybody's."""
    labels = FAMILIES[series[0]].labels
    return series[1 + labels.index("key")] if "key" in labels else ""


def _count_way(slab: Slab, call: Call, target: str) -> None:
    """What became of a call on its way."""
    cells = slab.cells
    if call.cache:
        cells[slab.place("cache_total", target, call.cache)] += 1
    if call.lost:
        cells[slab.place("lossy_calls_total", target)] += 1
    for attempt in call.attempts:
        name, _, cause = attempt.rpartition(" ")
        cells[slab.place("failed_attempts_total", name, cause)] += 1


def _resting(generation: Generation) -> Iterator[tuple[Series, bool]]:
    """Of everything that can rest, whether it does now: `proxy/attempts.py` and `proxy/upstream_keys.py` name it so."""
    names: dict[str, Series] = {}
    for target in generation.config.targets.values():
        if target.breaker:
            names[f"target {target.name}"] = ("target_resting", target.name)
        names |= {f"key {key} of {target.name}": ("upstream_key_resting", target.name, key) for key in target.keys}
    resting = generation.state.resting(list(names)) if names else {}
    for name, series in names.items():
        yield series, name in resting


def _lines(sums: Mapping[Series, list[float]]) -> Iterator[str]:
    by_family: defaultdict[str, list[Series]] = defaultdict(list)
    for series in sorted(sums):
        by_family[series[0]].append(series)
    for name, family in FAMILIES.items():
        if name in by_family:
            yield f"# HELP {PREFIX}{name} {family.help}"
            yield f"# TYPE {PREFIX}{name} {family.kind}"
        for series in by_family[name]:
            labels = [f'{label}="{_escaped(value)}"' for label, value in zip(family.labels, series[1:], strict=True)]
            if family.buckets:
                yield from _histogram(PREFIX + name, labels, family.buckets, sums[series])
            else:
                yield f"{PREFIX}{name}{_braced(labels)} {sums[series][0]:.17g}"


def _histogram(name: str, labels: list[str], buckets: tuple[float, ...], cells: list[float]) -> Iterator[str]:
    bounds = [*(f"{bound:g}" for bound in buckets), "+Inf"]
    for bound, count in zip(bounds, accumulate(cells[:-1]), strict=True):
        le = f'le="{bound}"'
        yield f"{name}_bucket{_braced([*labels, le])} {count:.17g}"
    yield f"{name}_sum{_braced(labels)} {cells[-1]:.17g}"
    yield f"{name}_count{_braced(labels)} {sum(cells[:-1]):.17g}"


def _braced(labels: list[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def page(visit: Visit) -> None:
    """GET /metrics, for the master key and keys with `console: true`, which see of `key` their own alone. Raises Refused."""
    visit.viewers_only("GET", "HEAD")
    assert visit.generation.records is not None
    metrics = visit.generation.records.kinds["metrics"]
    assert isinstance(metrics, Metrics)
    viewer = None if visit.call.key_name == "master" else visit.call.key_name
    visit.reply.whole(200, [("content-type", CONTENT_TYPE)], metrics.text(visit.generation, viewer).encode())
