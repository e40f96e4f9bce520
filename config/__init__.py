"""The declaration: values in `pipeline.yaml`, its loading in `settings.py`."""
