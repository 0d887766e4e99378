"""Following: from knowing nothing, or an older plan, to answering by the newest one.

One thread does it all, because a first start, a restart and a new bundle are the same steps: hear
of a plan, have its bundle, load it, swap it in. What is in use goes on answering until the next one
is loaded, and after every failure the step is tried again, ever more rarely; so a fleet that starts
before its pool, a token that is not valid yet and a full disk all end by themselves.

Where a plan comes from: a file, which is looked at again when it changes; the state folder; the
session in use, whose tail named a newer one; and the pool's placement, where nothing else is known
or the version in use is served no more. In that last case the placement is believed whatever its
generation: there is nobody else left to ask.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from dovetail import telemetry
from dovetail.bundle import Bundle
from dovetail.errors import (
    BundleCorrupt,
    BundleError,
    DovetailError,
    FetchFailed,
    JoinFailed,
    ManifestError,
    RequestError,
    TailUntrusted,
    Unauthorized,
    Unavailable,
    UnknownBlob,
    UnknownPlan,
)
from dovetail.plan import Plan
from dovetail_edge import store
from dovetail_edge.access import Access, stamp
from dovetail_edge.cache import Cache
from dovetail_edge.fetch import Cloud, Fetcher
from dovetail_edge.holder import Holder
from dovetail_edge.link import Overtaken
from dovetail_edge.session import Session
from dovetail_edge.start import Options, check_class, first_plans, read_plan
from dovetail_edge.status import Following

log = logging.getLogger("dovetail.edge")

_LOOK_EVERY: Final = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_LOAD = 0.5, 30.0, 300.0


class Follower:
    """Keeps a holder on the newest plan this device hears of.

    Args:
        options: what the edge is started with.
        holder: gets the sessions.

    Raises:
        ManifestError: nothing says where a plan or a bundle comes from, or a file cannot be used.
        BundleError: the given folder holds no bundle, or not the plan's.
    """

    def __init__(self, options: Options, holder: Holder) -> None:
        self._options, self._holder = options, holder
        if options.state is None and (options.plan is None or options.bundle is None):
            raise ManifestError(
                "without --plan and --bundle both come from the pool; give --state, the folder "
                "in which they are kept"
            )
        access = Access(options.endpoint, options.device_class, options.credentials)
        self._cloud = Cloud(access)
        given = Bundle(options.bundle) if options.bundle else None
        self._cache = Cache(options.state / "bundles", given) if options.state else None
        self._given = given
        self._fetcher = Fetcher(self._cloud, self._cache) if self._cache else None
        self._stamp = stamp(options.plan) if options.plan else None
        self._lock, self._wake, self._stop = threading.Lock(), threading.Event(), False
        self._wanted: Plan | None = None
        self._anew: Plan | None = None  # the wanted one, where it is to be taken whatever is held
        self._lost, self._again = False, 0.0
        self._pause, self._said = 0.0, ""
        self._known = first_plans(options)
        self._thread = threading.Thread(target=self._run, name="dovetail-follow", daemon=True)

    def start(self, *, joining: bool = False) -> None:
        """Begin; what is given whole, plan and bundle, is loaded before this returns.

        Args:
            joining: whether somebody waits to hear if this device was taken in: where nothing is
                here to answer with, the pool is asked before this returns.

        Raises:
            JoinFailed: the pool cannot be reached or trusted, or what it has does not fit here.
            Unauthorized: it refuses the token.
            DovetailError: what is given cannot be used.
        """
        ready = next((plan for plan in self._known if self._find(plan) is not None), None)
        if self._given is not None and (self._cache is None or self._fits_given(ready)):
            self._load(ready or self._known[0], self._given)
        else:
            self._wanted = ready or next(iter(self._known), None)
        if joining and self._wanted is None and self._holder.session is None:
            self._join()
        self._thread.start()

    def offer(self, plan: Plan | None) -> None:
        """Hear of a plan; of None, that the version in use is served no more."""
        with self._lock:
            if plan is None:
                self._lost = True
                return
            if not self._newer(plan):
                return
            self._wanted, self._again, self._pause = plan, 0.0, 0.0
        self._wake.set()

    def close(self) -> None:
        """Stop; the session in use stays."""
        self._stop = True
        self._wake.set()
        self._cloud.quit()
        if self._thread.is_alive():
            self._thread.join()
        self._cloud.close()

    def _join(self) -> None:
        """Hear of a plan and see that its bundle has room; the rest comes while this device waits.

        What only takes time is no failure: a device may join before there is a version for it.
        """
        endpoint = self._options.endpoint
        try:
            self._ask()
            if self._fetcher is not None and self._wanted is not None:
                self._fetcher.prepare(self._wanted)
        except Unauthorized as error:
            raise Unauthorized(
                f"{endpoint} refuses the token in {self._options.credentials.token}: it was "
                "revoked, or belongs elsewhere; take the one that is valid now from the Secret of "
                "this device's group"
            ) from error
        except UnknownPlan as error:
            log.info("joined; %s", error)
        except (FetchFailed, TailUntrusted) as error:
            raise JoinFailed(f"cannot join: {error}") from error
        except Unavailable as error:
            raise JoinFailed(
                f"cannot join: {error}; expected is the address of a pool, the `endpoint` in the "
                "Secret of this device's group"
            ) from error
        log.info("joined %s", endpoint)

    def _run(self) -> None:
        while not self._stop:
            try:
                self._step(time.monotonic())
            except Overtaken:
                return  # `close` was called
            except DovetailError as error:
                self._failed(error)
            except Exception:  # a defect here must not end plans and bundles for good
                log.exception("following failed")
                self._again = time.monotonic() + _LONGEST_PAUSE
            self._wake.wait(_LOOK_EVERY)
            self._wake.clear()

    def _step(self, now: float) -> None:
        if self._cloud.access.refresh():
            self._again = self._pause = 0.0
        self._look_at_file()
        if now < self._again:
            return
        if self._lost or (self._wanted is None and self._holder.session is None):
            self._ask()
        plan = self._wanted
        if plan is not None:
            self._bring(plan)
            with self._lock:
                if self._wanted is plan:
                    self._wanted = None

    def _failed(self, error: DovetailError) -> None:
        """Wait longer after every failure in a row, and say what is waited for."""
        asking = isinstance(error, Unavailable | RequestError)  # that costs little
        longest = _LONGEST_PAUSE if asking else _LONGEST_LOAD
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE), longest)
        pause = self._pause * random.uniform(0.8, 1.2)  # noqa: S311  a fleet must not ask in step
        self._again = time.monotonic() + pause
        if isinstance(error, UnknownBlob):
            self._lost = True  # the plan is older than what the pool has
        self._holder.waiting = str(error)
        if self._holder.following is not None:
            problem = {"problem": str(error)}
            self._holder.following = self._holder.following.model_copy(update=problem)
        if str(error) != self._said or self._pause >= longest:
            log.warning("%s; it is tried again in %.0f s, and so on", error, pause)
        self._said = str(error)
        self._cloud.access.link.resolve()

    def _look_at_file(self) -> None:
        """Hear of the plan in the file again, where it changed."""
        path = self._options.plan
        if path is None or (now := stamp(path)) == self._stamp:
            return
        self._stamp = now
        try:
            self.offer(read_plan(path))
        except ManifestError as error:
            log.warning("%s; what is in use stays", error)

    def _ask(self) -> None:
        """Ask the pool where devices of this token begin."""
        self._holder.waiting = f"{self._options.endpoint} is asked for a plan"
        plan = self._cloud.plan()
        check_class(self._options, plan, "the pool's plan")
        session = self._holder.session
        lost, self._lost = self._lost, False
        anew = lost and (session is None or plan.application != session.plan.application)
        with self._lock:
            if anew or self._newer(plan):
                self._wanted = plan
                self._anew = plan if anew else None

    def _newer(self, plan: Plan) -> bool:
        """Whether a plan is this device's, and newer than what it has and wants."""
        session = self._holder.session
        held = [one for one in (session.plan if session else None, self._wanted) if one is not None]
        return all(
            plan.generation > one.generation
            and (plan.deployment, plan.device_class) == (one.deployment, one.device_class)
            for one in held
        )

    def _bring(self, plan: Plan) -> None:
        """Have the plan's bundle, load it, and answer with it."""
        self._holder.following = Following(generation=plan.generation, bundle=plan.bundle)
        bundle = self._find(plan) or self._fetch(plan)
        session = self._holder.session
        if self._overtaken(plan):
            log.info("plan %d is not taken over: there is a newer one by now", plan.generation)
        elif session is not None and session.bundle.digest == plan.bundle:
            if not session.adopt(plan) and session.plan.generation < plan.generation:
                raise FetchFailed(f"plan {plan.generation} could not be taken over")
        else:
            self._load(plan, bundle)
        self._holder.following, self._said, self._pause = None, "", 0.0

    def _overtaken(self, plan: Plan) -> bool:
        """Whether a newer plan came while this one's bundle did."""
        session = self._holder.session
        held = session is not None and session.plan.generation >= plan.generation
        return self._wanted is not plan or (held and self._anew is not plan)

    def _find(self, plan: Plan) -> Bundle | None:
        return self._cache.find(plan) if self._cache is not None else None

    def _fits_given(self, plan: Plan | None) -> bool:
        return self._given is not None and plan is not None and self._given.digest == plan.bundle

    def _fetch(self, plan: Plan) -> Bundle:
        if self._fetcher is None or self._cache is None:
            raise BundleError(
                f"plan {plan.generation} is for bundle {plan.bundle}, which is not here; "
                "give --state, the folder in which fetched bundles are kept"
            )
        session = self._holder.session
        self._cache.keep({plan.bundle, *([session.bundle.digest] if session else ())})
        log.info("plan %d needs bundle %s", plan.generation, plan.bundle)
        bundle = self._fetcher.fetch(plan, self._told(plan))
        log.info("bundle %s is here", bundle.version)
        return bundle

    def _told(self, plan: Plan) -> Callable[[int, int], None]:
        """Shows how far a fetch is."""

        def told(have: int, size: int) -> None:
            self._holder.waiting = f"bundle {plan.bundle} is fetched, {have} of {size} bytes"
            self._holder.following = Following(
                generation=plan.generation, bundle=plan.bundle, fetched=have, size=size
            )

        return told

    def _load(self, plan: Plan, bundle: Bundle) -> None:
        """Load a bundle beside the one in use, and answer with it from the next request on."""
        options, old = self._options, self._holder.session
        if old is not None:
            weights = sum(bundle.blobs[one] for one in bundle.needs(0, len(bundle.config.segments)))
            log.info(
                "loading bundle %s beside %s: up to %d bytes of weights more until that one is "
                "closed",
                bundle.version,
                old.bundle.version,
                weights,
            )
        self._holder.waiting = f"bundle {bundle.version} is loaded"
        try:
            session = Session(
                bundle,
                plan,
                endpoint=options.endpoint,
                credentials=options.credentials,
                threads=options.threads,
                slowdown=options.slowdown,
                state=options.state,
                elsewhere=self.offer if self._cache is not None else None,
            )
        except BundleCorrupt:
            if self._cache is not None:
                self._cache.mend(plan.bundle)
            raise
        store.keep(self._options.state, session.plan)
        self._holder.swap(session)
        self._settled(session, old)

    def _settled(self, session: Session, old: Session | None) -> None:
        """Forget what is neither in use nor the one before."""
        plan = session.plan
        telemetry.plan_generation.set(plan.generation)
        known, self._known = self._known, []
        for other in known:  # what was here came first; now what is newer and must be fetched
            self.offer(other)
        log.info(
            "plan %d, bundle %s, rung %s", plan.generation, session.bundle.version, plan.default
        )
        if self._cache is None:
            return
        self._cache.used(session.bundle.digest)
        kept = {session.bundle.digest, *([old.bundle.digest] if old else ())}
        self._cache.keep(kept, spare=0 if old else 1)
