from memback.commands import main

raise SystemExit(main())
