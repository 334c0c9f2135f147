"""Visual Genome detection with attributes, in the reference's COCO-style JSON."""

import numpy as np
import tensorflow_datasets as tfds

from unit_jax.data.sources import coco


class VisualGenome(coco.Coco):
    """Visual Genome, split so that no COCO 2017 validation image is trained on.

    Files: visual_genome/annotations/instances_{train,val}_split_by_coco_2017.json, COCO's format
    plus `attribute_ids_max16` per annotation (up to 16 ids, -1 = none) and, where given,
    `attCategories` with their names; image folders visual_genome/VG_100K and VG_100K_2.
    """

    name = "visual_genome"
    image_family = "images_visual_genome"
    origin = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html (images)"
    features = {
        **coco.Coco.features,
        "attributes": tfds.features.Tensor(shape=(None, coco.ATTRIBUTE_SLOTS), dtype=np.int32),
    }
    attributes = True
    annotations = {
        split: f"visual_genome/annotations/instances_{split}_split_by_coco_2017.json"
        for split in ("train", "val")
    }
    test = ("", "")
    image_folders = ()
