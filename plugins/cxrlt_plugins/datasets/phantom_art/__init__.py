"""How phantoms are drawn: bodies, findings, exposure. Pictures only, no clinical data.

``vocabulary`` names the classes and their frequencies, ``cohort`` invents patients and their labels, ``report`` the
noise of the training labels; ``canvas`` draws in centimetres, ``body`` and ``frontal`` / ``lateral`` paint anatomy, the
``*_findings`` modules paint findings, ``exposure`` turns attenuation into grey levels, ``render`` joins them.
"""
