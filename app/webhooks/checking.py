"""What keeps a webhook from being made or changed as it was asked for: everything at once.

This is for those who mistype. What protects this network is the sender, which judges the address that it is connected
to; a name that is checked today may lead elsewhere tomorrow.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from pydantic import AnyUrl, TypeAdapter, ValidationError

from app.peers import Peers
from app.signing import fault_of
from app.store.deliveries import WebhookEvent
from cogram_core.errors import Problem
from cogram_core.recipe.suggest import did_you_mean

MOST_URL_CHARACTERS = 2048
_URL: TypeAdapter[AnyUrl] = TypeAdapter(AnyUrl)
_LOCAL_NAMES = ("localhost", "local", "internal", "localdomain", "lan", "intranet", "home.arpa")
_EVENTS = [event.value for event in WebhookEvent]


def parsed(url: str) -> AnyUrl | None:
    """The address in the one form in which it is kept and called; None if it is none."""
    try:
        return _URL.validate_python(url)
    except ValidationError:
        return None


def url_problems(url: str, peers: Peers) -> Iterator[Problem]:
    """What is wrong with the address, as far as it tells itself."""
    found = parsed(url)
    if found is None or not found.host:
        yield Problem("url", "url.unreadable", "is no address; give one such as https://example.com/hooks")
        return
    if len(str(found)) > MOST_URL_CHARACTERS:
        yield Problem("url", "url.too_long", f"has more than {MOST_URL_CHARACTERS} characters; shorten it")
    schemes = ("https", "http") if peers.allow_private else ("https",)
    if found.scheme not in schemes:
        yield Problem("url", "url.scheme", f"begins with {found.scheme}://; give an address with https://")
    if found.username is not None or found.password is not None:
        yield Problem("url", "url.credentials", "holds a user or password; remove them: messages are signed instead")
    if found.fragment is not None:
        yield Problem("url", "url.fragment", "has a part behind #, which is never sent; remove it")
    if found.port == 0:
        yield Problem("url", "url.port", "names port 0, where nobody listens; give another")
    if not _may_be_public(found.host, peers):
        yield Problem("url", "url.private", "leads to a private or reserved address; give one that is public")


def event_problems(events: Sequence[str]) -> Iterator[Problem]:
    """What is wrong with the list of events."""
    if not events:
        yield Problem("events", "events.empty", f"is empty; choose among {', '.join(_EVENTS)}")
    for index, event in enumerate(events):
        if event not in _EVENTS:
            message = f"there is no event {event[:64]!r}; {did_you_mean(event, _EVENTS)}"
            yield Problem(f"events.{index}", "events.unknown", message)
        elif event in events[:index]:
            yield Problem(f"events.{index}", "events.repeated", f"{event!r} stands there twice; remove one")


def secret_problems(secret: str) -> Iterator[Problem]:
    """What is wrong with a secret that the caller chose."""
    fault = fault_of(secret)
    if fault is not None:
        yield Problem("secret", "secret.unusable", fault)


def _may_be_public(host: str, peers: Peers) -> bool:
    """False only where the host itself says that it isn't."""
    if peers.allow_private:
        return True
    name = host.strip("[]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return not any(name == local or name.endswith("." + local) for local in _LOCAL_NAMES)
    return peers.allow(name)
