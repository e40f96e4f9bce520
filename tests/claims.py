# ruff: noqa: E501  (sentences stand as they are on their pages)
"""What pages promise, each sentence with the test that would fail if it were not so.

Sentences are those of the page, word for word; a test is known by its name alone. Each paragraph and
list item of the parts that promise something has one here, or a reason why it has none.
"""

#: By page, the sentence and its test.
CLAIMS = {
    "docs/schema-changes.md": {
        "It counts as well for one that is left out of `columns`.": "test_a_column_that_is_left_out_of_the_mirror_is_kept_or_dropped_as_well",
        "each row keeps the value that the mirror had last, also when the row changes later.": "test_a_plain_mirror_keeps_a_dropped_column_with_the_last_values",
        "Copies and `repair` keep the values, by the table's key;": "test_a_copy_and_a_repair_keep_what_a_plain_mirror_has_in_a_dropped_column",
        "the column goes from all versions, from the [snapshots](temporal.md), and from the next published": "test_a_history_drops_a_column_where_that_is_said",
        "Columns that were kept before go with the next sync, in a plain mirror by a copy.": "test_another_setting_counts_for_the_columns_that_were_kept",
        "A column that comes back under its name is the source's again.": "test_a_kept_column_is_the_sources_again_when_it_comes_back",
        "A column is added to a destructive mirror without reading a row, however large the table is, where both are so:": "test_no_row_is_read_for_columns_whose_values_are_known",
        "So it is added to a history that follows the log of PostgreSQL, where it has no default.": "test_a_history_takes_a_column_without_default_and_keeps_each_version",
        "A default makes new versions of all rows, so the column is read for it, and its past stays as it": "test_a_history_has_a_default_as_versions_and_its_past_as_it_was",
        "Nothing is read of a PostgreSQL table for a column that was dropped, where it follows the log or is polled.": "test_no_row_is_read_for_a_column_that_was_dropped",
        "Nor is it where the column is left out of `columns`": "test_a_column_that_is_not_to_be_mirrored_any_more_takes_no_copy",
        "A history keeps the column as it is: versions that are written from then on have null in it.": "test_a_history_keeps_a_dropped_column_and_has_null_in_it_from_then_on",
        "The table is copied where one of the other columns was added or has a narrower type, or where it has dead letters.": "test_a_table_is_copied_where_more_was_done_than_columns_dropped",
        "A column of an enum, or of another type of your own, is read alone.": "test_a_column_of_an_own_type_is_read_alone",
        "Nothing is read for it.": "test_no_row_is_read_for_a_column_that_was_renamed",
        "Of a dropped column it says whether the mirror keeps it.": "test_each_change_that_was_followed_is_kept",
        "A history in SQLite has an added column read alone, whatever its default is.": "test_no_row_is_copied_for_columns_that_are_renamed_dropped_and_added",
        "So a renamed column is the same one, the key's as well, and nothing is read for it.": "test_no_row_is_copied_for_columns_that_are_renamed_dropped_and_added",
        "The table is copied where that count leaves a doubt:": "test_what_is_not_sure_is_read_again",
        "A history has all its versions under the new name, also those from before.": "test_a_history_has_all_its_versions_under_the_new_name",
        "So have its daily snapshots.": "test_a_day_of_before_a_renaming_has_its_values_under_the_new_name",
        "Several names may change at once, and the key's as well.": "test_the_key_may_be_renamed_and_a_name_may_have_another_case",
        "The table is copied where a name could mislead:": "test_a_table_is_copied_where_a_name_does_not_prove_its_column",
        "For these, nothing is read either.": "test_no_row_is_read_for_a_column_that_holds_the_same_values",
        "It is copied where a column of an enum, or of another type of your own, is defined otherwise.": "test_a_table_is_copied_where_a_column_may_hold_other_values",
        "Otherwise the column is": "test_a_table_is_copied_where_more_was_done_than_columns_added",
        "Where the table follows the log or is polled, Rhei reads the key and that column, and none of the others.": "test_one_column_is_read_and_the_mirror_equals_its_source",
        "What differs is applied: to a history as versions of that moment.": "test_a_history_gets_what_differs_as_versions_and_keeps_its_past",
        "So do the versions of a history, those too that were logged before the change.": "test_versions_of_a_real_are_the_doubles_that_its_values_were",
    },
    "docs/guarantees.md": {
        "All other versions stay as they were": "test_nothing_of_a_forgotten_key_is_left_on_the_disk",
        "Either both are there or neither.": "test_a_process_killed_at_any_instant",
        "The watermark never goes back.": "test_a_mirror_equals_its_source_through_crashes_and_migrations",
        "The tests raise an error at every named step of the way": "test_a_mirror_equals_its_source_through_crashes_and_migrations",
        "A reader of the mirror sees states that the source committed, never half of a transaction, also across tables.": "test_a_reader_sees_only_states_that_the_source_committed",
        "A table that cannot be read or applied is left out of that state, named, and keeps the position it had.": "test_any_fault_of_one_sqlite_table_is_its_own",
        "Rows are read again in the sync's own snapshot, so the mirror cannot get an image that another trigger made stale.": "test_the_applications_own_trigger_has_the_last_word",
        "The log of a *temporal* table holds the row as it was once the statement's own triggers had run.": "test_the_applications_own_trigger_has_the_last_word",
        "Rows that REPLACE evicts through any unique index (partial ones and ones over expressions, too) are logged before they go.": "test_replace_evicts_through_any_unique_index",
        "An application's write or migration never fails because of capture.": "test_where_triggers_would_be_too_deep_the_table_is_refused_and_the_application_writes_on",
        "Tables of SQLite are mirrored up to its own limit of 2000 columns.": "test_changes_of_a_table_of_as_many_columns_as_there_can_be_are_read_whole",
        "One that comes, leaves or is declared otherwise takes nothing from the others, and has none of them copied.": "test_mirrors_with_other_columns_come_and_go",
        "They have one key in common: a mirror that asks for another is refused by name.": "test_a_mirror_that_asks_for_another_key_is_refused_and_takes_nothing",
        "A dropped trigger, a rebuilt table, a cleared log, an older backup put back: each is detected in the cycle that first meets it.": "test_an_older_backup_put_back",
        "`rhei verify` finds them and `rhei repair` mends them.": "test_what_fires_no_trigger_is_found_by_verify_and_healed_by_repair",
        "No version is lost or overlaps another.": "test_a_temporal_mirror_equals_the_source_at_every_instant",
        "All of them get one instant, so an as-of query shows a transaction whole or not at all.": "test_every_instant_shows_whole_transactions",
        "If capture was lost and a table had to be copied again, the difference is written as versions dated at that copy.": "test_a_cleared_log",
        "So no version that a trigger logged is lost: not beside a writer, and not to a mirror that comes back after several migrations.": "test_a_mirror_that_lags_over_migrations",
        "A mirror that has not been seen for seven days no longer holds it.": "test_a_mirror_that_was_away_for_a_week_holds_no_log_back",
        "PostgreSQL triggers keep every version that is written after a migration and before the next sync, or beside it.": "test_what_is_written_after_a_migration_is_kept_version_by_version",
        "`rhei check` and `rhei status` name a log of triggers that no mirror reads any more,": "test_a_log_of_postgres_that_no_mirror_reads_is_named_until_it_is_ended",
        "A history gets every version that the source tells of, also those made while the copy runs.": "test_what_is_written_while_a_healthy_table_is_repaired_is_kept_version_by_version",
        "Added up, the answers are what the mirror holds, after every one of them.": "test_changes_add_up_whenever_versions_come",
        "Every captured table is then compared with its source by digests, once, in the next cycle.": "test_changes_of_the_schema_that_leave_no_difference_compare_once",
        "`rhei verify` finds their rows, `rhei repair` mirrors them.": "test_what_fires_no_trigger_is_found_by_verify_and_healed_by_repair",
        "A floating key 0.0 that is updated to -0.0 is an update of its row.": "test_zero_and_minus_zero_are_one_key",
        "are kept in the form that the source has, never twice.": "test_texts_that_a_collation_holds_equal_follow_the_source",
        "A row whose key *becomes* null ends under its old key.": "test_a_key_that_becomes_null_ends_its_row_and_names_it",
        "It becomes a **dead letter** with table, key, column and reason, never a guess, a null or a stop.": "test_a_value_that_does_not_fit_is_a_dead_letter_and_blocks_nothing",
        "When the value is mended at the source, the dead letter resolves itself.": "test_a_dead_letter_is_resolved_once_its_row_fits",
        "a table of which a policy hides rows from the pipeline's user is left out by name.": "test_row_security_that_hides_rows_is_named_until_the_user_bypasses_it",
        "So a policy that is made while they run is not taken for deleted rows.": "test_rows_that_row_security_hides_for_a_moment_are_not_taken_for_deleted_ones",
        "A table whose columns mix storage classes, or that computes a column as it is read, is read as without it.": "test_a_column_of_several_classes_is_read_here",
        "The log is pruned as soon as every mirror has what it holds.": "test_the_log_of_a_source_does_not_grow_without_bound",
        "For what only an open mirror can do, it steps aside between two calls, and goes on afterwards.": "test_the_holder_steps_aside_for_what_needs_the_mirror_and_goes_on",
        "Whoever dies at any of these steps is not waited for.": "test_whoever_is_killed_while_the_holder_stands_aside_is_not_waited_for",
        "Who waits for another process longer than a second is told for which.": "test_nobody_waits_in_silence",
    },
    "README.md": {
        "After any crash, at any instant, the mirror equals the source at exactly the recorded position:": "test_a_process_killed_at_any_instant",
        "A reader of the mirror only ever sees states that the source committed, across tables.": "test_a_reader_sees_only_states_that_the_source_committed",
        "What cannot be mirrored is a dead letter with its key and reason.": "test_a_value_that_does_not_fit_is_a_dead_letter_and_blocks_nothing",
        "A table that cannot be kept up is named with the way out.": "test_any_fault_of_one_sqlite_table_is_its_own",
    },
    "docs/buffer.md": {
        "Once something was deleted, `read(after=0)` raises `PositionLostError`": "test_a_log_that_was_pruned_says_so_to_who_reads_from_its_beginning",
        "`prune(n)` deletes whole extents of the log up to a number, so some events before it may stay.": "test_a_log_that_was_pruned_says_so_to_who_reads_from_its_beginning",
    },
    "docs/faq.md": {
        'With `hint="olap"` you ask the mirror as it is.': "test_the_mirror_as_it_is_and_its_past_lack_writes_until_a_sync",
        "The mirror of a temporal table holds versions.": "test_a_temporal_table_is_what_is_valid_now_unless_history_is_asked_for",
    },
    "docs/temporal.md": {
        "Every instant from there on is answered as before.": "test_what_stays_of_a_shortened_history_is_as_it_was",
        'An instant before the cut is refused: "its history is kept since ...".': "test_versions_go_by_their_age_and_no_instant_before_is_answered",
        "an `as_of` of now does not show writes since then.": "test_the_mirror_as_it_is_and_its_past_lack_writes_until_a_sync",
    },
    "docs/operations.md": {
        "Run what this prints.": "test_what_the_page_says_takes_rhei_out_of_sqlite",
        "Everything is in the schema `_rhei`, triggers excepted, which call functions of it:": "test_what_the_page_says_takes_rhei_out_of_postgres",
        "A mirror has a slot and a publication of one name,": "test_what_the_page_says_takes_rhei_out_of_postgres",
        "Where WAL cannot be had, the mode was never changed.": "test_what_the_page_says_takes_rhei_out_of_sqlite",
    },
    "docs/postgres.md": {
        "Then that table is left out by name, and the other tables go on.": "test_a_locked_table_is_read_once_its_lock_is_gone",
        "so changes arrive all the same.": "test_changes_that_are_logged_are_read_though_their_table_is_locked",
        "Transactions that have begun meanwhile are nothing": "test_a_copy_that_waits_for_an_older_transaction_keeps_no_other_table_waiting",
    },
    "docs/serving.md": {
        "The client is then told to log in again.": "test_a_client_whose_token_lay_idle_is_told_to_log_in_again",
        "every table is copied that is not left out": "test_a_table_that_is_left_out_keeps_nobody_from_asking",
        "It loads nothing from elsewhere and needs no script.": "test_a_browser_shows_the_page_and_runs_nothing",
    },
    "docs/applications.md": {
        "All calls wait. In an event loop, have a thread wait:": "test_an_event_loop_has_a_thread_wait",
        "Routes that are declared with `def` run in threads, so they call Rhei directly.": "test_a_fastapi_application_answers",
        "With `hold=False` no worker keeps the mirror open between two calls.": "test_a_django_view_answers",
    },
}  # fmt: skip

#: Pages, and where the part begins in which each paragraph and list item needs a claim.
PROMISING = {"docs/guarantees.md": "# Guarantees", "README.md": "## What is guaranteed"}

#: Beginnings of paragraphs that promise nothing that a test could show, with the reason.
WITHOUT = {
    "**What an instant can split.**": "a limit, told for what it means",
    "SQLite: a column that was added is not in the log": "a known gap",
    "SQLite, a mirror that comes back after several migrations": "a known gap",
    "A mirror that meets **several migrations at once**": "a known gap",
    "Versions written **while the table had another name**": "a known gap",
    "The policies end there:": "a limit, told for what it means",
    "One to three trigger statements per row.": "a figure, which 'make bench' measures",
    "Reads are short transactions.": "a figure: a constant of the code",
    "Give the application a busy timeout": "advice",
    "[Guarantees](docs/guarantees.md) says how": "a link",
}
