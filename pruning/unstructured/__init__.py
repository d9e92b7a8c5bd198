"""Single weights and N:M patterns: which go, how they stay zero, how zeros are stored."""
