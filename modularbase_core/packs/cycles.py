"""Which ids need themselves, by way of others: a cycle through each, in time linear in ids and needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Graph = Mapping[str, Sequence[str]]


def cycles(needs: Graph) -> dict[str, tuple[tuple[str, ...], int]]:
    """Return for every id on a cycle one cycle, and where in it the id stands; the last needs the first.

    needs: every id with those that it needs, all of them ids. The same ids in another order give the same cycles
    only if `needs` is sorted.
    """
    found: dict[str, tuple[tuple[str, ...], int]] = {}
    needed_by = _reversed(needs)
    for group in _strongly_connected(needs, needed_by):
        root = min(group)
        if len(group) == 1 and root not in needs[root]:
            continue
        forth, back = _tree(root, needs, group), _tree(root, needed_by, group)
        for one in sorted(group):
            if one in found:
                continue
            cycle = _through(one, root, needs, forth, back)
            for at, member in enumerate(cycle):
                found.setdefault(member, (cycle, at))
    return found


def _reversed(graph: Graph) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {one: [] for one in graph}
    for one, others in graph.items():
        for other in others:
            out[other].append(one)
    return out


def _strongly_connected(needs: Graph, needed_by: Graph) -> list[set[str]]:
    """Group ids that need each other (Kosaraju and Sharir), without recursion: chains may be long."""
    groups: list[set[str]] = []
    grouped: set[str] = set()
    for root in reversed(_finished(needs)):
        if root in grouped:
            continue
        group, ahead = {root}, [root]
        while ahead:
            fresh = {other for other in needed_by[ahead.pop()] if other not in grouped and other not in group}
            group |= fresh
            ahead += fresh
        grouped |= group
        groups.append(group)
    return groups


def _finished(needs: Graph) -> list[str]:
    """List the ids as a depth-first search leaves them: each after those that it leads to."""
    order: list[str] = []
    seen: set[str] = set()
    for root in needs:
        if root in seen:
            continue
        seen.add(root)
        path = [(root, iter(needs[root]))]
        while path:
            one, rest = path[-1]
            other = next((other for other in rest if other not in seen), None)
            if other is None:
                order.append(one)
                path.pop()
            else:
                seen.add(other)
                path.append((other, iter(needs[other])))
    return order


def _tree(root: str, graph: Graph, group: set[str]) -> dict[str, str]:
    """Return the step before each of the group on a shortest way from `root`, the nearest first."""
    before = {root: root}
    ahead = [root]
    for one in ahead:
        for other in graph[one]:
            if other in group and other not in before:
                before[other] = one
                ahead.append(other)
    return before


def _way(one: str, root: str, before: Mapping[str, str]) -> list[str]:
    """List the steps from `one` to `root`, both included."""
    way = [one]
    while way[-1] != root:
        way.append(before[way[-1]])
    return way


def _through(one: str, root: str, needs: Graph, forth: Mapping[str, str], back: Mapping[str, str]) -> tuple[str, ...]:
    """Return a cycle that begins with `one`: the way to the root and on to `one`, without its detours."""
    if one == root:
        needed = set(needs[root])
        nearest = next(other for other in back if other in needed)
        walk: Iterable[str] = [root, *_way(nearest, root, back)[:-1]]
    else:
        walk = [*_way(one, root, back), *reversed(_way(one, root, forth)[1:-1])]
    cycle: list[str] = []
    at: dict[str, int] = {}
    for step in walk:
        if step in at:
            for skipped in cycle[at[step] + 1 :]:
                del at[skipped]
            del cycle[at[step] + 1 :]
        else:
            at[step] = len(cycle)
            cycle.append(step)
    return tuple(cycle)
