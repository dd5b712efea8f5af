"""A procedural subject-to-video world in which the truth is known: subjects, scenes, media, captions, data sets."""
