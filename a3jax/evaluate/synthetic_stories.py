"""Synthetic stories, made by us from templates: what the third sentence says of a thing, only the last one reveals.

They are no measure of how well a model writes. They show, with nothing to download, what seeing the end is worth: from
the left alone the fact in the blank can only be guessed, one time in as many as there are words to choose from.
"""

import random

from a3jax.evaluate.stories import Story

SYNTHETIC = "synthetic stories from templates"
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Leo", "Maria", "Nick", "Rosa", "Sam")
_FACTS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "rabbit", "parrot", "horse", "goat", "turtle", "hamster"),
    "colour": ("red", "blue", "green", "yellow", "white", "black", "purple", "orange"),
    "place": ("Paris", "London", "Rome", "Tokyo", "Berlin", "Madrid", "Chicago", "Boston"),
    "food": ("pizza", "soup", "rice", "pasta", "chicken", "salad", "fish", "cake"),
    "music": ("piano", "guitar", "violin", "drums", "flute", "trumpet", "harp", "cello"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "weather": ("rain", "snow", "wind", "thunder", "fog", "hail"),
    "job": ("doctor", "teacher", "lawyer", "pilot", "farmer", "baker", "nurse", "painter"),
}  # fmt: skip
_TEMPLATES = (
    ("animal", "{name} felt lonely in the new house.", "So one morning {name} drove to the shelter.",
     "There {name} adopted a {fact}.", "The two of them went home together.", "Now {name} and the {fact} are best friends."),
    ("colour", "{name} was tired of the old kitchen.", "It had not been changed in years.",
     "{name} painted the walls {fact}.", "The work took a whole weekend.", "Every visitor admired the {fact} walls."),
    ("place", "{name} had saved money for a long time.", "Finally there was enough for a trip.",
     "{name} bought a ticket to {fact}.", "The flight left early in the morning.", "{name} still dreams of {fact}."),
    ("food", "{name} had invited friends for dinner.", "There was not much time left.",
     "{name} decided to make {fact}.", "The guests arrived at seven.", "Everyone asked for more of the {fact}."),
    ("music", "{name} wanted to learn something new.", "A friend knew a good teacher.",
     "{name} began to play the {fact}.", "It was hard in the first year.", "Today {name} plays the {fact} on a big stage."),
    ("day", "{name} had a bad toothache.", "It would not go away.",
     "{name} got an appointment for {fact}.", "The pain grew worse until then.", "On {fact} the dentist pulled the tooth."),
    ("weather", "{name} planned a picnic in the park.", "The basket was packed and ready.",
     "Then the radio warned of {fact}.", "{name} looked at the sky and waited.", "Because of the {fact}, nobody came."),
    ("job", "{name} did not know what to do after school.", "All the others had plans already.",
     "One day {name} chose to become a {fact}.", "It took years of hard work.", "Now {name} is the best {fact} in town."),
)  # fmt: skip


def synthetic_stories(count: int, seed: int = 0) -> list[Story]:
    """So many stories; the first ones of a larger count are the same."""
    drawn = random.Random(seed)
    stories = []
    for number in range(count):
        kind, *sentences = drawn.choice(_TEMPLATES)
        words = {"name": drawn.choice(_NAMES), "fact": drawn.choice(_FACTS[kind])}
        stories.append(Story(f"synthetic-{number}", tuple(sentence.format(**words) for sentence in sentences), words["fact"]))
    return stories
