"""What everything else stands on: records, files, errors, statistics, progress. No models, no stages."""
