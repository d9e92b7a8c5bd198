"""Built-in data sets and models, each a plain function that is named by an import string.

    zoo.datasets:digits      zoo.models:resnet20      zoo.augment:crop

Nothing is registered anywhere: a data set or model of one's own is named in the same way (`my_package.models:make`).
"""
