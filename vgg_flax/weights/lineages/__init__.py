"""Named arrays <-> a VGG's variables: who wrote them, and with which pixels."""
