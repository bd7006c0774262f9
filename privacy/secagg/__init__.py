"""Secure aggregation with the noise inside: the server learns a noised sum and nothing else. Pure, no I/O.

``plan`` what all agree on; ``choice``, ``codec``, ``sizing``, ``bounds`` integers and their noise; ``shares`` one client's
noised vector; ``client`` and ``server`` the state machines; ``two_trip`` their messages in two trips a round. See
docs/secagg.md.
"""
