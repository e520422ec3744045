"""`complete_with_ray` on one machine where TMPDIR is long (SLURM's, macOS's): a sentence that names TMPDIR, as there is for a
cluster that cannot be joined; what Ray raises on its own start comes through as it is. Takes a minute or two."""
import os, sys, tempfile
folder = os.path.join(tempfile.mkdtemp(), "a_temporary_folder_of_a_cluster_job", "as_SLURM_makes_them", "job_1234567_node_042")
os.makedirs(folder); os.environ["TMPDIR"] = folder; os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
tempfile.tempdir = None
from rsstudy import cluster as campaign
from rsstudy.plan import PROFILES, Settings, plan, scaled
from rsslib.errors import InputError
if __name__ == "__main__":
    try:
        campaign.complete_with_ray(plan(scaled(PROFILES["smoke"], supernet_epochs=1), methods=["rss-short"]), Settings(results=folder, progress=False))
    except InputError as error:
        print("InputError:", error)
    except Exception as error:
        print(f"{type(error).__name__}: {str(error)[:200]}"); sys.exit(1)
