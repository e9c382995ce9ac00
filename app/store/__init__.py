"""What app and worker share: database, migrations, blobs, job state, events. No HTTP and no Celery in here."""
