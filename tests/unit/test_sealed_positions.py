"""Where a copy goes on is sealed: by a library's cipher, and what older versions left is read."""

import base64
import sys

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from rhei_pipeline.changes.masks import MaskingKey
from rhei_pipeline.errors import MissingExtraError

KEY = MaskingKey("a key of the tests, and of nothing else")
TEXT = '["4711", "Müller"]'
#: What the version before this one made of the text.
FORMER = "DALwtW9HplI79fQs6GYOHq6VWLCBSU24Kq2ohlcX_rEJ6X4="


def test_the_same_text_is_sealed_alike_and_opened_by_its_key_alone() -> None:
    sealed = KEY.seal(TEXT)
    assert KEY.seal(TEXT) == sealed
    assert "4711" not in sealed
    assert KEY.unseal(sealed) == TEXT
    with pytest.raises(InvalidTag):
        MaskingKey("another key of the tests").unseal(sealed)
    content = base64.urlsafe_b64decode(sealed.partition(".")[2])
    with pytest.raises(InvalidTag):
        AESSIV(bytes(64)).decrypt(content, None)


def test_what_the_version_before_has_sealed_is_read() -> None:
    assert KEY.unseal(FORMER) == TEXT


def test_a_missing_package_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rhei-pipeline\[masking\]'"):
        KEY.seal(TEXT)
