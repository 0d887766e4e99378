"""One tree of typed errors.

Every error a person or a peer can cause has a class of its own, because three parties must tell
errors apart without parsing text: the CLI (exit code), HTTP servers (status code and the
`Dovetail-Error` header), and an edge that decides whether to retry, refetch or answer alone.

    DovetailError
    ├── UserError                    exit 2, http 400: the request cannot be met as it is
    │   ├── ModelError               the model given to the partitioner
    │   │   ├── ModelNotReadable     not ONNX, or truncated
    │   │   ├── ExternalDataError    external data missing, or outside the model's folder
    │   │   ├── UnsupportedModel     an operator or type that is never loaded
    │   │   ├── UnboundShape         a dynamic dimension nobody bound
    │   │   └── ModelLimitExceeded   asks for more memory or time than the sandbox allows
    │   ├── CalibrationError         calibration rows that do not fit the model
    │   ├── CostsError               a cost profile of another model, or of other segments
    │   ├── ProofError               a cut or codec that is not shown to be right
    │   │   └── ProofVacuous         outputs that do not vary prove nothing
    │   ├── BundleError              a bundle that is missing, damaged or of another format
    │   │   └── BundleCorrupt        a blob's bytes do not have the digest they are named by
    │   ├── ManifestError            a HybridDeployment that breaks the schema
    │   ├── LinkError                a simulated link or trace that does not parse
    │   ├── StateInUse               a state directory that another `dovetail up` holds
    │   ├── JoinFailed               a device that cannot join with what it was given
    │   ├── AddressRefused           an address to listen on that cannot be had
    │   ├── UnknownRung              a rung that the ladder does not have (404)
    │   └── RequestError             one inference request
    │       ├── InvalidTensor        a tensor with a wrong name, dtype, shape or size
    │       ├── InvalidMessage       a body that is not an inference message
    │       ├── BodyTooLarge         413
    │       ├── BodyTooSlow          408
    │       ├── UnknownModel         404
    │       ├── UnknownBlob          404
    │       ├── UnknownPlan          404
    │       ├── UnknownVersion       409: a head never meets a tail of another version
    │       ├── Unauthorized         401: a bearer token missing or not for this class
    │       └── PrivacyRefused       403: the privacy class forbids what was asked
    ├── Unavailable                  http 503, may be retried
    │   ├── TailUnavailable          refused, hung, cut or gone
    │   │   ├── TailUntrusted        its certificate is not one this device trusts
    │   │   └── TailMissing          the pool answers, and has no such application
    │   ├── FetchFailed              a bundle that cannot be fetched now
    │   ├── NotReady                 an edge that has no model to answer with yet
    │   ├── Overloaded               the tail's queue is full
    │   └── DeadlineExceeded         504
    ├── PoolFailed                   a pool that does not start, or an application in it that fails
    ├── ChildFailed                  a process started by `dovetail up` that does not run
    ├── MissingTool            exit 3: a missing tool, extra or permission
    └── NotStructural          a type of ours that a Kubernetes schema cannot express
"""

from typing import ClassVar


class DovetailError(Exception):
    """Base of every error Dovetail raises on purpose.

    Attributes:
        http_status: status code a server answers with.
        exit_code: exit code of the CLI.
        retryable: whether the same request may succeed later, unchanged.
    """

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    @property
    def code(self) -> str:
        """Stable name that travels in the `Dovetail-Error` header."""
        return type(self).__name__


class UserError(DovetailError):
    """What was asked cannot be done as asked; changing it helps, repeating it does not."""

    http_status = 400
    exit_code = 2


class ModelError(UserError):
    """The model cannot be imported."""


class ModelNotReadable(ModelError):
    """The file is not an ONNX model, or it ends early."""


class ExternalDataError(ModelError):
    """A weight file is missing, too short, or lies outside the model's folder."""


class UnsupportedModel(ModelError):
    """The model uses an operator, domain or type that Dovetail never loads."""


class UnboundShape(ModelError):
    """A dynamic dimension must be bound before the model can be measured and cut."""


class ModelLimitExceeded(ModelError):
    """The model asked for more memory or time than an untrusted model is given."""


class CalibrationError(UserError):
    """Calibration rows are missing, or do not fit the model's inputs."""


class CostsError(UserError):
    """A cost profile that was not measured on this model, or on these segments."""


class ProofError(UserError):
    """A cut or a codec is not shown to give the whole model's answers."""


class ProofVacuous(ProofError):
    """The outputs do not vary over the calibration rows, so equality would prove nothing."""


class BundleError(UserError):
    """The bundle is missing, incomplete, or of a format this version does not read."""


class BundleCorrupt(BundleError):
    """A blob's bytes do not have the digest the blob is named by."""


class ManifestError(UserError):
    """A HybridDeployment manifest breaks the schema."""


class LinkError(UserError):
    """A simulated link or a trace file does not say what it should."""


class StateInUse(UserError):
    """Another `dovetail up` holds the state directory."""


class JoinFailed(UserError):
    """A device that has nothing to answer with yet cannot join with what it was given."""


class AddressRefused(UserError):
    """An address to listen on that is taken, or not this machine's."""


class UnknownRung(UserError):
    """The ladder has no rung of that id."""

    http_status = 404


class RequestError(UserError):
    """One inference request cannot be answered as it was sent."""


class InvalidTensor(RequestError):
    """A tensor's name, dtype, shape or byte count is not what the model declares."""


class InvalidMessage(RequestError):
    """The body is not an Open Inference Protocol v2 message."""


class BodyTooLarge(RequestError):
    """The body is larger than this server accepts."""

    http_status = 413


class BodyTooSlow(RequestError):
    """The body arrives slower than the least rate this server accepts."""

    http_status = 408


class UnknownModel(RequestError):
    """No model of that name is served here."""

    http_status = 404


class UnknownBlob(RequestError):
    """No bundle handed out here has a blob of that digest."""

    http_status = 404


class UnknownPlan(RequestError):
    """There is no plan for that device class here."""

    http_status = 404


class UnknownVersion(RequestError):
    """The version asked for is not served here; the edge refetches its plan."""

    http_status = 409


class Unauthorized(RequestError):
    """The bearer token is missing, unknown, or scoped to something else."""

    http_status = 401


class PrivacyRefused(RequestError):
    """The privacy class forbids sending what this rung would send."""

    http_status = 403


class Unavailable(DovetailError):
    """The service cannot answer now; the same request may succeed later."""

    http_status = 503
    retryable = True


class TailUnavailable(Unavailable):
    """The tail refused, hung, cut the connection or is gone, and the edge cannot answer alone."""


class TailUntrusted(TailUnavailable):
    """The endpoint's certificate is not trusted by this device, or is for another name."""


class TailMissing(TailUnavailable):
    """The pool has no application of that name: it is not there yet, or was taken away."""


class FetchFailed(Unavailable):
    """A bundle cannot be fetched now; what is in use stays, and it is tried again."""


class NotReady(Unavailable):
    """No model is loaded yet; the message says what is being waited for."""


class Overloaded(Unavailable):
    """More requests wait than this server keeps; try again after `Retry-After` seconds."""


class DeadlineExceeded(Unavailable):
    """No answer could be made before the request's deadline."""

    http_status = 504


class PoolFailed(DovetailError):
    """The pool did not start, or what was put into it did not run."""


class ChildFailed(DovetailError):
    """A process that `dovetail up` started did not run."""


class MissingTool(DovetailError):
    """A tool, an optional extra or a permission is missing on this machine."""

    exit_code = 3


class NotStructural(DovetailError):
    """A type of the resource that a custom resource's schema cannot express; it ends the build."""


def by_code(code: str) -> type[DovetailError]:
    """Find the class a peer named in `Dovetail-Error`; unknown names map to `DovetailError`."""
    todo: list[type[DovetailError]] = [DovetailError]
    while todo:
        cls = todo.pop()
        if cls.__name__ == code:
            return cls
        todo.extend(cls.__subclasses__())
    return DovetailError
