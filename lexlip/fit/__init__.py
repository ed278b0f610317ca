"""From captioned images and two public towers to a model folder, in one command: `lexlip fit`."""
