"""The colours of ImageNet's pixels: their mean, deviation and components."""

# Krizhevsky et al. 2012, section 4.1: principal components of ImageNet's RGB pixels
# in [0, 1], values as published with fb.resnet.torch; eigenvectors are columns.
IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
