"""DVC's stages as a flow goes through them: fetched or reproduced, with their figures and their outcome."""
