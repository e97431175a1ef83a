"""Policies and critics of reinforcement learning."""

from __future__ import annotations

import pkgutil

import pytest
import torch

from tests.architectures.describe import Architecture, fixed, floats, from_path, integers, merge

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
CONTROL: tuple[Architecture, ...] = (
    from_path("actor-critic", "tests.architectures.control:actor_critic",
        merge(floats(obs=(8, 4)), fixed(deterministic=True))),
    from_path("deep-q", "tests.architectures.control:deep_q", floats(obs=(8, 4))),
    from_path("deep-q-image", "tests.architectures.control:deep_q_image", integers(255, obs=(2, 3, 40, 40))),
    from_path("soft-actor-critic", "tests.architectures.control:soft_actor_critic",
        merge(floats(obs=(8, 4)), fixed(deterministic=True))),
)
# fmt: on


def _policy(path: str, observed: str, acted: str) -> torch.nn.Module:
    gymnasium, _ = pytest.importorskip("gymnasium"), pytest.importorskip("stable_baselines3")
    spaces = {
        "four numbers": gymnasium.spaces.Box(-1.0, 1.0, (4,)),
        "two numbers": gymnasium.spaces.Box(-1.0, 1.0, (2,)),
        "picture": gymnasium.spaces.Box(0, 255, (3, 40, 40), "uint8"),
        "three buttons": gymnasium.spaces.Discrete(3),
    }
    make = pkgutil.resolve_name(f"stable_baselines3.{path}")
    policy: torch.nn.Module = make(spaces[observed], spaces[acted], lr_schedule=lambda _: 1e-3, net_arch=[16])
    return policy


def actor_critic() -> torch.nn.Module:
    """Return the policy of PPO."""
    return _policy("ppo:MlpPolicy", "four numbers", "two numbers")


def soft_actor_critic() -> torch.nn.Module:
    """Return the policy of SAC."""
    return _policy("sac:MlpPolicy", "four numbers", "two numbers")


def deep_q() -> torch.nn.Module:
    """Return the network of DQN with its target network."""
    return _policy("dqn:MlpPolicy", "four numbers", "three buttons")


def deep_q_image() -> torch.nn.Module:
    """Return the network of DQN for images."""
    return _policy("dqn:CnnPolicy", "picture", "three buttons")
