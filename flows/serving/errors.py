"""What a client reads when a request cannot be answered, in the shape of OpenAI's errors."""

from typing import Any

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that is not answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Say why.

        Args:
            status: of HTTP.
            message: one sentence.
            code: a word for programs.
            param: the field of the request that is wrong.
            retry_after: seconds until another try may be answered.
        """
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """Give the JSON of the answer."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Give the headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
