"""A scenario: one YAML file that says everything about an experiment."""

from splitfed.scenario.scenario import Scenario as Scenario
