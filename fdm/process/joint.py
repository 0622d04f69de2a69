"""Frameworks whose network sees a pixel's auxiliary variables: what they are called."""

from typing import NamedTuple

from fdm.params import Architecture, Framework


class Joint(NamedTuple):
    """A framework of a process with one auxiliary variable; `fdm.model.joint` has its network."""

    label: str
    learned: bool  # whether its process is searched for, by the evidence lower bound
    architecture: Architecture = "ddpmpp"
    channels: int = 2  # that its network has for each of an image: the pixel and its velocity


JOINT: dict[Framework, Joint] = {"cld": Joint("CLD", False), "mdm": Joint("MDM", True)}
