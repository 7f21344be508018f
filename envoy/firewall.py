"""What a site's network has to allow, and the request for it, ready to be pasted into a ticket for IT. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.addresses import Address
from ..utils.proxies import Proxy


def firewall_request(source: str, federation: str, directors: Sequence[Address], proxy: Proxy | None) -> str:
    """The text of a ticket.

    Args:
        source: this machine, as IT knows it.
        federation: whose director is called.
        directors: its addresses, each with a port.
        proxy: the one that the site calls through; None: directly.
    """
    targets = "\n".join(f"    {one.host}, TCP port {one.port}" for one in directors)
    hosts = ", ".join(sorted({one.host for one in directors}))
    if proxy is None:
        way = "directly; no proxy is used"
        proxies = f"""\
  - If web traffic of this machine is sent through a proxy without its doing (transparent proxy), please leave out
    {hosts}."""
    else:
        way = f"through the HTTP proxy {proxy.address}, by CONNECT"
        proxies = f"""\
  - On the proxy {proxy.address}: please allow CONNECT from this machine to the destination above, port included, and
    tunnels that stay open for hours."""
    return f"""\
Subject: firewall: outbound connection for the research federation "{federation}"

Please allow this connection. It is outbound only: nothing outside opens a connection to us, and no port is opened
towards us.

  Source:       {source}
  Destination:
{targets}
  Way:          {way}
  Protocol:     TLS 1.3 with client certificates on both sides (mutual TLS), HTTP/2 inside (gRPC)
  Direction:    outbound; answers come back over the same connection
  Duration:     connections stay open for hours, with a sign of life every second while the envoy runs; please do not
                cut them when they are idle or old
  Volume:       a few megabytes to gigabytes an hour while a model is trained, in both directions

  - No TLS inspection (SSL decryption, "man in the middle") for {hosts}: both sides check each other's certificate
    against the federation's own authority, so a connection that is opened on its way cannot work.
{proxies}
  - DNS: {_names(directors, proxy)}

What it carries: a statistical model, and the changes to it that are computed on this machine. The program sends no
images and no patient records. Nothing else is needed: no inbound rule, no VPN, no other host.
"""


def _names(directors: Sequence[Address], proxy: Proxy | None) -> str:
    if proxy is not None:
        name = (
            f"this machine must resolve {proxy.address.host}"
            if proxy.address.ip is None
            else "nothing for this machine"
        )
        return f"{name}; the proxy resolves {', '.join(one.host for one in directors)}"
    names = sorted({one.host for one in directors if one.ip is None})
    return (
        f"this machine must resolve {', '.join(names)}"
        if names
        else "nothing to resolve: the destination is an address"
    )
