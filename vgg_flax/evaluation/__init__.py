"""The paper's protocols over a data set."""
