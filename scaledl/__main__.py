from scaledl.cli import main

main()
