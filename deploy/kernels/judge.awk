# Reads the console of a test kernel (`init` says what is on it); prints what was skipped and why, what there is
# to complain of, and last `RELEASE: N passed, N failed, N skipped`. Exit 1 if anything failed.
/^== kernel / { release = $3 }
/^== begin / { open = $3; counted = 0; reported = 0 }
/^test result:/ { passed += $4; failed += $6; skipped += $8; reported += $6; counted = 1 }
# Such a test has passed by its runner's count.
/^skipped: / { skipped++; passed--; reasons[$0]++ }
/^== end / {
    # The lab is one test. A binary that ends badly without saying of which test has crashed.
    if ($3 == "lab") { if ($4 == 0) passed++; else failed++ }
    else if (!counted || ($4 != 0 && !reported)) { failed++; print $3 " ended with " $4 }
    open = ""
}
/^== complaint / { failed++; print "the kernel says: " substr($0, 14) }
/^== done/ { done = 1 }
END {
    for (reason in reasons) print reason " (" reasons[reason] " tests)"
    if (!done) { failed++; print "it did not come to its end" (open ? ", but stopped in " open : "") }
    print (release ? release : "no kernel") ": " passed + 0 " passed, " failed + 0 " failed, " skipped + 0 " skipped"
    exit failed > 0
}
