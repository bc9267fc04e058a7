"""Parsing of error texts, which are those of obstore for responses of real servers."""

import pytest

from varve.storage.store_errors import parse_error

HEAD = "Generic S3 error: Error performing PUT http://127.0.0.1:7490/bucket1/x/k2 in 538.825µs - "


def answer(status: str, code: str, message: str = "") -> str:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return f"{HEAD}Server returned non-2xx status code: {status}: {body}\n\nDebug source:\nGeneric {{}}"


def broken(kind: str, message: str) -> str:
    source = f'inner: Http(\n HttpError {{\n kind: {kind},\n source: Os {{ message: "{message}", }} }} )'
    return f"{HEAD}HTTP error: error sending request\n\nDebug source:\nGeneric {{ {source} }}"


@pytest.mark.parametrize(
    ("text", "is_transient", "message", "advice"),
    [
        (answer("503 Service Unavailable", "SlowDown", "Reduce."), True, "SlowDown (503): Reduce.", "resume"),
        (
            answer("403 Forbidden", "RequestTimeTooSkewed", "The difference is too large."),
            False,
            "RequestTimeTooSkewed (403): The difference is too large.",
            "Set the clock of this machine",
        ),
        (answer("500 Internal Server Error", "InternalError"), True, "InternalError (500)", "resume"),
        (answer("400 Bad Request", "RequestTimeout"), True, "RequestTimeout (400)", "resume"),
        (answer("409 Conflict", "ConditionalRequestConflict"), True, "ConditionalRequestConflict", "resume"),
        (answer("403 Forbidden", "SignatureDoesNotMatch"), False, "SignatureDoesNotMatch (403)", "credentials"),
        (answer("403 Forbidden", "AccessDenied"), False, "AccessDenied (403)", "rights to list, read and create"),
        (answer("403 Forbidden", "QuotaExceeded"), False, "QuotaExceeded (403)", "raise the quota"),
        (answer("507 Insufficient Storage", "XMinioStorageFull"), False, "XMinioStorageFull (507)", "Free some space"),
        (answer("404 Not Found", "NoSuchBucket"), False, "NoSuchBucket (404)", "Create the bucket"),
        (
            answer("400 Bad Request", "AuthorizationHeaderMalformed", "the region 'x' is wrong"),
            False,
            "region",
            "REGION",
        ),
        (answer("400 Bad Request", "InvalidArgument"), False, "InvalidArgument (400)", "is one empty?"),
        (answer("301 Moved", "PermanentRedirect"), False, "PermanentRedirect (301)", "AWS_REGION"),
        (answer("501 Not Implemented", "NotImplemented"), False, "NotImplemented (501)", "resume"),
        (broken("Connect", "Connection refused"), True, "Connection refused", "AWS_ENDPOINT_URL"),
        (broken("Interrupted", "Connection reset by peer"), True, "Connection reset by peer", "resume"),
        (broken("Timeout", "operation timed out"), True, "operation timed out", "resume"),
        ("Generic LocalFileSystem error: No space left on device (os error 28)", False, "No space", "Free some space"),
    ],
)
def test_error_has_its_message_whether_it_is_transient_and_what_to_check(text, is_transient, message, advice):
    error = parse_error(Exception(text))
    assert error.is_transient == is_transient
    assert message in error.message
    assert advice in error.advice


def test_machine_without_a_role_is_not_asked_repeatedly():
    text = (
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: error "
        "sending request\n\nDebug source:\nGeneric { HttpError {\n kind: Connect,\n } }"
    )
    error = parse_error(Exception(text))
    assert not error.is_transient
    assert "no credentials in the environment" in error.advice


@pytest.mark.parametrize("code", ["NoSuchBucket", "ContainerNotFound"])
def test_missing_container_is_not_a_missing_object(code):
    assert parse_error(Exception(answer("404 Not Found", code))).is_container_missing
    assert not parse_error(Exception(answer("404 Not Found", "NoSuchKey"))).is_container_missing


def test_only_an_address_that_never_answered_is_unreachable():
    assert parse_error(Exception(broken("Connect", "Connection refused"))).is_unreachable
    assert not parse_error(Exception(broken("Interrupted", "Connection reset by peer"))).is_unreachable
    assert not parse_error(Exception(answer("503 Service Unavailable", "SlowDown"))).is_unreachable
