"""What has to hold of every answer to a generated request."""

import unicodedata

import schemathesis


@schemathesis.check
def served_or_refused(ctx, response, case):
    """No failure of the daemon's own; a refusal is in the envelope, in one sentence."""
    status = response.status_code
    # 501 is Incus' word for what is known and not served.
    assert status < 500 or status == 501, f"a failure of the daemon: {status} {response.text[:500]}"
    if status >= 400 and case.method != "HEAD":
        envelope = response.json()
        said = envelope["error"]
        assert envelope["type"] == "error" and envelope["error_code"] == status, envelope
        plain = not any(unicodedata.category(c) == "Cc" for c in said)
        assert said and len(said) < 1000 and plain, f"not one sentence: {said!r}"
