"""An index of many models: 2 KB of each, by which a relation can be shown without the models themselves."""
