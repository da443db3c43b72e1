"""Hydra's choice of files, and what they make together: a worker asks once for each choice of fsl's own groups.

A command of a test composes one to four times, mostly of the same files, and that is most of a short command's time.
What is asked for in values goes in anew each time, as Hydra does it. Where files of a test's own can be chosen, nothing
is kept.
"""

import pickle
from dataclasses import replace

from hydra import version
from hydra._internal import config_loader_impl
from hydra.core.config_store import ConfigStore


class ComposedOnce:
    """Stands for `create_defaults_list` of Hydra, and for what its loader composes of the list."""

    def __init__(self):
        self._choose = config_loader_impl.create_defaults_list
        self._compose = config_loader_impl.ConfigLoaderImpl._compose_config_from_defaults_list
        self._chosen = {}  # each list of files by what was asked for
        self._composed = {}  # what each makes, by the identity of the list, which `_chosen` keeps

    def patch(self, patch):
        """Take their places."""
        patch.setattr(config_loader_impl, "create_defaults_list", self.chosen)
        loader, composed = config_loader_impl.ConfigLoaderImpl, lambda loader, **given: self.composed(loader, **given)
        patch.setattr(loader, "_compose_config_from_defaults_list", composed)

    def chosen(self, repo, config_name, overrides_list, prepend_hydra, skip_missing):
        if any(source.scheme() not in ("pkg", "structured") for source in repo.get_sources()):
            return self._choose(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        given = [override for override in overrides_list if not override.is_sweep_override()]
        values = [one for one in given if isinstance(one.value(), dict) or not repo.group_exists(one.key_or_group)]
        groups = tuple(one.input_line for one in given if not any(one is value for value in values))
        places = tuple(source.path for source in repo.get_sources())
        key = groups, config_name, prepend_hydra, skip_missing, places, version.getbase(), stored()
        if key not in self._chosen:
            self._chosen[key] = self._choose(repo, config_name, overrides_list, prepend_hydra, skip_missing)
            self._composed[id(self._chosen[key].defaults)] = None
        return replace(self._chosen[key], config_overrides=values)

    def composed(self, loader, defaults, repo):
        if id(defaults) not in self._composed:
            return self._compose(loader, defaults=defaults, repo=repo)
        if self._composed[id(defaults)] is None:
            self._composed[id(defaults)] = pickle.dumps(self._compose(loader, defaults=defaults, repo=repo))
        return pickle.loads(self._composed[id(defaults)])  # in a seventh of what a deep copy takes


def stored(tree=None):
    """The names of what Hydra knows without files; a test takes one away."""
    tree = ConfigStore.instance().repo if tree is None else tree
    return tuple((name, stored(below) if isinstance(below, dict) else ()) for name, below in sorted(tree.items()))
